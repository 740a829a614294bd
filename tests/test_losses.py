"""Losses on one worked example, every number by hand.

Two pairs. Log-probs of the targets, policy then reference, with sequences (chosen 0, rejected 0, chosen 1, rejected 1):

    sequence 0: policy -1.0 -2.0   reference -1.5 -2.5   c0 = (-3) - (-4) =  1
    sequence 1: policy -3.0        reference -1.0        r0 = (-3) - (-1) = -2
    sequence 2: policy -0.5        reference -0.5        c1 = 0
    sequence 3: policy -1.0 -1.0   reference -2.0 -1.0   r1 = (-2) - (-3) =  1

so Δ = (3, -1), and with beta = 0.5: βΔ = (1.5, -0.5). Per token: c/2 - r/1 = 0.5 + 2 = 2.5 and 0/1 - 1/2 = -0.5.
"""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.config import DPOConfig, SFTConfig
from posttrain.config.fields import flags_of
from posttrain.losses import Loss
from posttrain.losses.preference import LOSSES, PreferenceOptions, divergence_score, preference_loss
from posttrain.losses.sft import LOSSES as SFT_LOSSES
from posttrain.losses.sft import sft_loss

POLICY = [-1.0, -2.0, -3.0, -0.5, -1.0, -1.0]
REFERENCE = [-1.5, -2.5, -1.0, -0.5, -2.0, -1.0]
SEQUENCES = [0, 0, 1, 2, 3, 3]


def sig(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def nls(x: float) -> float:
    """-log σ(x)."""
    return math.log(1 + math.exp(-x))


def compute(name: str, ld_alpha: float | None = None, weights: list[float] | None = None, **options: float) -> Loss:
    return preference_loss(
        torch.tensor(POLICY, requires_grad=True),
        torch.tensor(REFERENCE),
        torch.tensor(SEQUENCES),
        2,
        [name],
        [1.0],
        PreferenceOptions(beta=0.5, **options),  # type: ignore[arg-type]
        ld_alpha,
        None if weights is None else torch.tensor(weights),
    )


BY_HAND = {
    "sigmoid": nls(1.5) + nls(-0.5),
    "hinge": 0.0 + 1.5,
    "ipo": (2.5 - 1) ** 2 + (-0.5 - 1) ** 2,
    "sigmoid_norm": nls(1.25) + nls(-0.25),
    "nca_pair": (nls(0.5) + 0.5 * nls(-0.5) + 0.5 * nls(1.0)) + (nls(0.0) + 0.5 * nls(0.0) + 0.5 * nls(-0.5)),
    "bco_pair": nls(0.5) + nls(1.0) + nls(0.0) + nls(-0.5),
    "sppo_hard": (1 - 1) ** 2 + (-2 + 1) ** 2 + (0 - 1) ** 2 + (1 + 1) ** 2,
    # Policy margins: -3 - -3 = 0 and -0.5 - -2 = 1.5; reference: -4 - -1 = -3 and -0.5 - -3 = 2.5. Sorted differences:
    # 0 - -3 = 3 and 1.5 - 2.5 = -1.
    "aot": nls(1.5) + nls(-0.5),
    # Sorted chosen (0, 1), sorted rejected (-2, 1): differences 2 and 0.
    "aot_unpaired": nls(1.0) + nls(0.0),
    "apo_zero": (1 - sig(0.5) + sig(-1.0)) + (1 - sig(0.0) + sig(0.5)),
    "apo_down": (sig(0.5) + 1 - sig(1.5)) + (sig(0.0) + 1 - sig(-0.5)),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name: str) -> None:
    (term,) = compute(name).terms
    assert term.divide_by == "groups"
    assert term.sum.item() == pytest.approx(BY_HAND[name], rel=1e-6)


def test_every_loss_of_the_table_is_checked() -> None:
    smoothed = {"exo_pair", "robust", "discopop"}
    assert set(LOSSES) == set(BY_HAND) | smoothed


def test_losses_with_a_constant_of_their_own() -> None:
    e = 0.1
    (term,) = compute("robust", label_smoothing=e).terms
    by_hand = ((1 - e) * nls(1.5) - e * nls(-1.5) + (1 - e) * nls(-0.5) - e * nls(0.5)) / (1 - 2 * e)
    assert term.sum.item() == pytest.approx(by_hand, rel=1e-6)

    def divergence(x: float) -> float:
        """KL from (σ(x), σ(-x)) to (1 - e, e)."""
        return sig(x) * math.log(sig(x) / (1 - e)) + sig(-x) * math.log(sig(-x) / e)

    (term,) = compute("exo_pair", label_smoothing=e).terms
    assert term.sum.item() == pytest.approx(divergence(1.5) + divergence(-0.5), rel=1e-6)

    def blended(x: float) -> float:
        share = sig(x / 0.5)
        return (1 - share) * nls(x) + share * math.exp(-x)

    (term,) = compute("discopop", discopop_tau=0.5).terms
    assert term.sum.item() == pytest.approx(blended(1.5) + blended(-0.5), rel=1e-6)


def test_sft_term_is_a_mean_over_chosen_tokens() -> None:
    (term,) = compute("sft").terms
    assert (term.sum.item(), term.divide_by) == (pytest.approx(1.0 + 2.0 + 0.5), "chosen_targets")


def test_length_desensitised() -> None:
    """ld_alpha weighs the tokens beyond the shorter completion: -2.0 of sequence 0, the second -1.0 of sequence 3.
    With 0.5: policy -1 - 1 = -2, reference -1.5 - 1.25 = -2.75, c0 = 0.75; r1 = -1.5 - -2.5 = 1 (c1, r0 as before)."""
    loss = compute("sigmoid", ld_alpha=0.5)
    assert loss.terms[0].sum.item() == pytest.approx(nls(0.5 * 2.75) + nls(-0.5), rel=1e-6)
    assert loss.metrics["logps/chosen"][0].item() == pytest.approx(-2.0 - 0.5)


def test_pairs_weighted_as_in_wpo() -> None:
    """With log Σ p² = -0.5 everywhere: means of log p + 0.5 are -1.0, -2.5, 0.0, -0.5; weights e^-3.5 and e^-0.5."""
    loss = compute("hinge", weights=[-0.5] * 6)
    assert loss.terms[0].sum.item() == pytest.approx(0.0 * math.exp(-3.5) + 1.5 * math.exp(-0.5), rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "alpha", "by_hand"),
    [
        ("reverse_kl", 0.5, math.log(2.0)),
        ("forward_kl", 0.5, 1 - 1 / 2),
        ("js_divergence", 0.5, math.log(2 * 2 / (1 + 2))),
        ("alpha_divergence", 0.5, (2**-0.5 - 1) / -0.5),
        ("alpha_divergence", 1.0, math.log(2.0)),
    ],
)
def test_divergences_at_a_ratio_of_two(kind: str, alpha: float, by_hand: float) -> None:
    score = divergence_score(torch.tensor(math.log(2.0)), kind, alpha)
    assert score.item() == pytest.approx(by_hand, rel=1e-6)


def test_metrics() -> None:
    """Rewards are 0.5 · (1, -2, 0, 1); only the first pair is ranked as it should be."""
    metrics = {name: total.item() / weight for name, (total, weight) in compute("sigmoid").metrics.items()}
    assert metrics == {
        "rewards/chosen": pytest.approx(0.25),
        "rewards/rejected": pytest.approx(-0.25),
        "rewards/accuracies": pytest.approx(0.5),
        "rewards/margins": pytest.approx(0.5),
        "logps/chosen": pytest.approx(-1.75),
        "logps/rejected": pytest.approx(-2.5),
    }


def test_gradient_of_sigmoid() -> None:
    """d(-log σ(βΔ))/d logp = -β σ(-βΔ) on chosen tokens, the opposite on rejected ones."""
    logprobs = torch.tensor(POLICY, requires_grad=True)
    args = (torch.tensor(REFERENCE), torch.tensor(SEQUENCES), 2, ["sigmoid"], [1.0], PreferenceOptions(beta=0.5))
    preference_loss(logprobs, *args).terms[0].sum.backward()
    a, b = 0.5 * sig(-1.5), 0.5 * sig(0.5)
    torch.testing.assert_close(logprobs.grad, torch.tensor([-a, -a, a, -b, b, b]))


def test_sft_losses() -> None:
    logprobs = torch.tensor([math.log(0.5), math.log(0.25)], requires_grad=True)
    loss = sft_loss(logprobs, torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0]), "nll")
    assert loss.terms[0].sum.item() == pytest.approx(math.log(8))
    assert loss.terms[0].divide_by == "targets"
    assert {k: s.item() / w for k, (s, w) in loss.metrics.items()} == {"entropy": 1.5, "mean_token_accuracy": 0.5}
    term = sft_loss(logprobs, torch.zeros(2), torch.zeros(2), "dft").terms[0]
    assert term.sum.item() == pytest.approx(0.5 * math.log(2) + 0.25 * math.log(4))
    term.sum.backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([-0.5, -0.25]))


def test_the_flags_choices_are_the_tables() -> None:
    """config may not import torch, so the names stand there a second time."""
    assert set(flags_of(DPOConfig)["loss_type"].metadata["choices"]) == set(LOSSES) | {"sft"}
    assert set(flags_of(SFTConfig)["loss_type"].metadata["choices"]) == set(SFT_LOSSES)
