"""GRPO's family and RLOO on one worked example, every number by hand.

Two completions, three tokens; the first has two of them and A = 1, the second one and A = -2:

    token 0: log π -1.0   ρ 1.5   H 1.0   log r  0.2        r = reference / policy
    token 1: log π -2.0   ρ 0.9   H 2.0   log r -0.1
    token 2: log π -0.5   ρ 0.5   H 3.0   log r  0.0

With ε = 0.2, -min(ρA, clip(ρ)A) is -min(1.5, 1.2) = -1.2, -0.9 and -min(-1, -1.6) = 1.6: their sum is -0.5, their means
a sequence -1.05 and 1.6. Of whole sequences, Π ρ is 1.35 and 0.5, the geometric mean √1.35 and 0.5.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from posttrain.losses import Loss
from posttrain.losses.entropy import applied_entropy_coef, next_entropy_coef, top_entropy_mask
from posttrain.losses.leave_one_out import leave_one_out_loss
from posttrain.losses.policy import LOSSES, PolicyOptions, policy_loss, policy_weights
from posttrain.losses.ratios import kl_estimates

LOGPROBS = torch.tensor([-1.0, -2.0, -0.5])
OLD = LOGPROBS - torch.tensor([1.5, 0.9, 0.5]).log()
REFERENCE = LOGPROBS + torch.tensor([0.2, -0.1, 0.0])
ENTROPY = torch.tensor([1.0, 2.0, 3.0])
SEQUENCES = torch.tensor([0, 0, 1])
ADVANTAGES = torch.tensor([1.0, -2.0])


def compute(logprobs: torch.Tensor = LOGPROBS, old: torch.Tensor | None = OLD, **settings: Any) -> Loss:
    given = {name: settings.pop(name) for name in ("entropy_mask", "entropy_coef") if name in settings}
    options = PolicyOptions(**settings)
    return policy_loss(logprobs, ENTROPY, SEQUENCES, ADVANTAGES, options, old, REFERENCE, **given)


def metric(loss: Loss, name: str) -> float:
    value, weight = loss.metrics[name]
    return float(value) / float(weight)


def sig(x: float) -> float:
    return 1 / (1 + math.exp(-x))


ROOT = math.sqrt(1.35)
BY_HAND = {
    "grpo": ("sequences", -1.05 + 1.6),
    "bnpo": ("targets", -0.5),
    "dr_grpo": ("budget", -0.5),
    "dapo": ("targets", -0.5),
    # min(ρ, 0.95): -0.95 · 1 · -1 - 0.9 · 1 · -2 - 0.5 · -2 · -0.5, ε_high 0.95.
    "cispo": ("targets", 0.95 + 1.8 - 0.5),
    # τ = 1 for A > 0, 1.05 otherwise.
    "sapo": ("sequences", -(4 * sig(0.5) + 4 * sig(-0.1)) / 2 + 2 * 4 / 1.05 * sig(1.05 * -0.5)),
    # φ = w^2 e^(3(1-w)) for A > 0, w^3 e^(2(1-w)) otherwise; -φ · A · Σ log π.
    "vespo": ("targets", 3 * 1.35**2 * math.exp(3 * -0.35) - 0.5**3 * math.exp(2 * 0.5)),
    "luspo": ("sequences", -0.5),
}
# √1.35 = 1.16 is in the range, so that both tokens of the first completion have the loss -√1.35.
BY_HAND_OF_SEQUENCES = {
    "grpo": -ROOT + 1.6,
    "bnpo": -2 * ROOT + 1.6,
    "dr_grpo": -2 * ROOT + 1.6,
    "dapo": -2 * ROOT + 1.6,
    "cispo": 0.95 * 3 - 0.5,
    "sapo": -4 * sig(ROOT - 1) + 2 * 4 / 1.05 * sig(1.05 * -0.5),
    "vespo": BY_HAND["vespo"][1],
    "luspo": -2 * ROOT + 1.6,
}


def high(name: str) -> float | None:
    return 0.95 if name == "cispo" else None


@pytest.mark.parametrize("name", LOSSES)
def test_by_hand(name: str) -> None:
    (term,) = compute(loss_type=name, epsilon_high=high(name)).terms
    divide_by, expected = BY_HAND[name]
    assert (term.sum.item(), term.divide_by, term.coefficient) == (pytest.approx(expected, rel=1e-5), divide_by, 1.0)
    (term,) = compute(loss_type=name, epsilon_high=high(name), importance_sampling_level="sequence").terms
    assert term.sum.item() == pytest.approx(BY_HAND_OF_SEQUENCES[name], rel=1e-5)


def test_what_terms_are_divided_by() -> None:
    """Two completions of at most 10 tokens; one of the three tokens is selected."""
    options = PolicyOptions(max_completion_length=10)
    weights = {"targets": 3, "sequences": 2, "budget": 20, "selected_targets": 1}
    assert policy_weights(3, 2, options, torch.tensor([0.0, 1.0, 0.0])) == weights
    assert policy_weights(3, 2, options) == weights | {"selected_targets": 3}


def test_clip_ratios() -> None:
    """Token 2 is clipped below, token 0 above; none and half of the first completion, all and none of the second."""
    loss = compute()
    names = ("low_mean", "high_mean", "region_mean", "low_min", "high_max")
    assert [metric(loss, f"clip_ratio/{name}") for name in names] == pytest.approx([1 / 3, 1 / 3, 2 / 3, 0.0, 0.5])
    of_sequences = compute(importance_sampling_level="sequence")
    values = [metric(of_sequences, f"clip_ratio/{name}") for name in names]
    assert values == pytest.approx([0.5, 0.0, 0.5, 0.0, 0.0])
    assert [metric(compute(epsilon_high=0.6), f"clip_ratio/{name}") for name in names[:2]] == pytest.approx(
        [1 / 3, 0.0]
    )
    assert metric(compute(loss_type="cispo", epsilon_high=1.2), "cispo_clip_ratio") == pytest.approx(1 / 3)
    phi = (1.35**2 * math.exp(3 * -0.35), 0.5**3 * math.exp(2 * 0.5))
    assert metric(compute(loss_type="vespo"), "vespo/phi_seq_mean") == pytest.approx(sum(phi) / 2, rel=1e-5)


def test_clip_ratios_of_nothing() -> None:
    """A completion without tokens has no share to be the least of; what has no advantage is not clipped."""
    ids, one = torch.tensor([1]), torch.ones(1)
    for advantage, expected in ((-2.0, 1.0), (0.0, 0.0)):
        advantages = torch.tensor([1.0, advantage])
        loss = policy_loss(one, one, ids, advantages, PolicyOptions(), old_logprobs=one + 1)
        assert metric(loss, "clip_ratio/low_min") == metric(loss, "clip_ratio/low_mean") == expected


def test_vespo_holds_log_ratios_within_bounds() -> None:
    """-30 and 21 become -20 and 20, so that w = 1 and φ = 1; -30 becomes log 1e-8, and with k = 0.5 φ is 1e-4 · e²."""
    loss = compute(old=LOGPROBS - torch.tensor([-30.0, 21.0, -30.0]), loss_type="vespo", vespo_k_neg=0.5)
    assert metric(loss, "vespo/phi_seq_mean") == pytest.approx((1 + 1e-4 * math.exp(2)) / 2, rel=1e-5)


def gradient(**settings: Any) -> list[float]:
    logprobs = LOGPROBS.clone().requires_grad_()
    loss = compute(logprobs, **settings)
    torch.stack([term.sum * term.coefficient for term in loss.terms]).sum().backward()
    assert logprobs.grad is not None
    return logprobs.grad.tolist()


def test_clipped_tokens_have_no_gradient_and_others_that_of_the_ratio() -> None:
    assert gradient() == pytest.approx([0.0, -0.9, 0.0])
    assert gradient(epsilon_high=0.6) == pytest.approx([-1.5, -0.9, 0.0])
    assert gradient(epsilon=0.6) == pytest.approx([-1.5, -0.9, 1.0])
    assert gradient(loss_type="cispo", epsilon_high=1.2) == pytest.approx([-1.2, -0.9, 1.0])
    assert gradient(old=None) == pytest.approx([-1.0, -1.0, 2.0])  # exactly on-policy: -A
    assert gradient(old=LOGPROBS) == gradient(old=None)


def test_delta_bounds_the_loss_of_a_negative_advantage() -> None:
    """ρ = 3 and A = -2: 6 without a bound, 2 · 2 with δ = 2; no gradient beyond it."""
    old = LOGPROBS - torch.tensor([1.0, 1.0, 3.0]).log()
    assert compute(old=old).terms[0].sum.item() == pytest.approx(-2 + 6)
    assert compute(old=old, delta=2.0).terms[0].sum.item() == pytest.approx(-2 + 4)
    assert gradient(old=old, delta=2.0) == pytest.approx([-1.0, -1.0, 0.0])


def test_off_policy_sequences_with_a_negative_advantage_are_left_out() -> None:
    """The second completion: A < 0, and log π_old - log π = log 2 = 0.69. The first is kept whatever its drift."""
    assert compute(off_policy_mask_threshold=0.7).terms[0].sum.item() == pytest.approx(-0.5)
    assert compute(off_policy_mask_threshold=0.6).terms[0].sum.item() == pytest.approx(-2.1)
    drifted = compute(old=LOGPROBS + 1, off_policy_mask_threshold=0.6)
    assert drifted.terms[0].sum.item() == pytest.approx(-2 * math.exp(-1))


def test_estimators_of_the_kl() -> None:
    expected = {
        "k1": [-0.2, 0.1, 0.0],
        "k2": [0.02, 0.005, 0.0],
        "k3": [math.exp(0.2) - 1 - 0.2, math.exp(-0.1) - 1 + 0.1, 0.0],
    }
    for name, values in expected.items():
        assert kl_estimates(LOGPROBS, REFERENCE, name).tolist() == pytest.approx(values, rel=1e-4, abs=1e-7)


def test_kl_with_and_without_the_correction() -> None:
    """k3 is 0.021403 and 0.004837; times ρ, 0.032104 and 0.004354. On-policy, the gradient of k3 alone is 1 - r; with
    the ratio it is k3 + 1 - r = -log r, that of the KL divergence without bias."""
    for corrected, values in ((True, [0.032104, 0.004354]), (False, [0.021403, 0.004837])):
        loss = compute(beta=0.1, use_bias_correction_kl=corrected)
        assert loss.terms[1].sum.item() == pytest.approx(sum(values), rel=1e-3)
        assert (loss.terms[1].divide_by, loss.terms[1].coefficient) == ("targets", 0.1)
        assert metric(loss, "kl") == pytest.approx(sum(values) / 3, rel=1e-3)
    per_sequence = compute(loss_type="grpo", beta=0.1, use_bias_correction_kl=False)
    assert per_sequence.terms[1].sum.item() == pytest.approx((0.021403 + 0.004837) / 2, rel=1e-3)

    def of_kl(corrected: bool) -> list[float]:
        both = gradient(old=None, beta=1.0, use_bias_correction_kl=corrected)
        return [total - policy for total, policy in zip(both, gradient(old=None), strict=True)]

    assert of_kl(True) == pytest.approx([-0.2, 0.1, 0.0], abs=1e-6)
    assert of_kl(False) == pytest.approx([1 - math.exp(0.2), 1 - math.exp(-0.1), 0.0], abs=1e-6)


def test_entropy_mask_and_bonus_act_on_the_same_tokens_and_the_kl_on_all() -> None:
    """Token 1 is masked: -1.2 + 1.6 = 0.4 is left of the policy's loss, 1 + 3 of the entropies."""
    mask = torch.tensor([1.0, 0.0, 1.0])
    loss = compute(entropy_mask=mask, entropy_coef=0.1, beta=0.5, use_bias_correction_kl=False)
    sums = [(term.sum.item(), term.divide_by, term.coefficient) for term in loss.terms]
    assert sums[0] == (pytest.approx(0.4), "targets", 1.0)
    assert sums[1] == (pytest.approx(0.02624, rel=1e-3), "targets", 0.5)
    assert sums[2] == (4.0, "selected_targets", -0.1)
    assert metric(loss, "policy_loss") == pytest.approx((0.4 + 0.5 * 0.02624) / 3, rel=1e-3)
    assert metric(loss, "entropy_coef") == pytest.approx(0.1)
    assert metric(loss, "entropy") == 2.0


def test_top_entropy_mask() -> None:
    """Of 1 to 5, the 0.6 quantile is the place 0.6 · 4 = 2.4, so 3.4."""
    entropies = torch.tensor([4.0, 1.0, 5.0, 2.0, 3.0])
    assert top_entropy_mask(entropies, 0.4).tolist() == [1, 0, 1, 0, 0]
    assert top_entropy_mask(entropies, 0.5).tolist() == [1, 0, 1, 0, 1]
    assert top_entropy_mask(entropies, 0.0).tolist() == [0, 0, 1, 0, 0]
    assert top_entropy_mask(entropies, 1.0).tolist() == [1, 1, 1, 1, 1]
    assert top_entropy_mask(entropies[:0], 0.4).tolist() == []


def test_adaptive_entropy_coefficient() -> None:
    bounds = {"target": 0.2, "delta": 0.005, "minimum": 0.0, "maximum": 0.012}
    assert next_entropy_coef(0.005, 0.2, **bounds) == pytest.approx(0.01)
    assert next_entropy_coef(0.01, 0.1, **bounds) == 0.012
    assert next_entropy_coef(0.01, 0.3, **bounds) == pytest.approx(0.005)
    assert next_entropy_coef(0.003, 0.3, **bounds) == 0.0
    assert [applied_entropy_coef(0.01, last, 0.2) for last in (None, 0.3, 0.2)] == [0.0, 0.0, 0.01]


def rloo(logprobs: torch.Tensor = LOGPROBS, **settings: Any) -> Loss:
    return leave_one_out_loss(logprobs, ENTROPY, SEQUENCES, ADVANTAGES, **{"old_logprobs": OLD, **settings})


def test_leave_one_out() -> None:
    """-min(1.35, 1.2) - min(-1, -1.6) = 0.4, clipped above and below; with ε = 0.6, -1.35 + 1."""
    loss = rloo()
    (term,) = loss.terms
    assert (term.sum.item(), term.divide_by, term.coefficient) == (pytest.approx(0.4), "sequences", 1.0)
    names = ("low_mean", "high_mean", "region_mean", "low_min", "high_max")
    assert [metric(loss, f"clip_ratio/{name}") for name in names] == [0.5, 0.5, 1.0, 0.0, 1.0]
    assert metric(loss, "entropy") == 2.0
    assert rloo(epsilon=0.1, epsilon_high=0.6).terms[0].sum.item() == pytest.approx(-1.35 + 1.8)
    for settings, expected in (({}, [0, 0, 0]), ({"epsilon": 0.6}, [-1.35, -1.35, 1]), ({"old_logprobs": None}, None)):
        logprobs = LOGPROBS.clone().requires_grad_()
        rloo(logprobs, **settings).terms[0].sum.backward()
        assert logprobs.grad is not None
        assert logprobs.grad.tolist() == pytest.approx(expected or [-1.0, -1.0, 2.0])
