"""What samples of another engine weigh, worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.losses.policy import PolicyOptions, policy_loss
from posttrain.losses.sampler_correction import CorrectionOptions, sampler_correction

# Three completions of 2, 1 and 2 tokens; trainer over sampler: 2, 4 | 1/4 | 1, 1/2. Of whole completions: 8, 1/4, 1/2.
SEQUENCES = torch.tensor([0, 0, 1, 2, 2])
LOG_RATIO = torch.tensor([2.0, 4.0, 0.25, 1.0, 0.5]).log()


@pytest.mark.parametrize(
    ("mode", "clip_min", "weights", "of_sequences", "limited"),
    [
        ("token_truncate", None, [2, 3, 0.25, 1, 0.5], [6, 0.25, 0.5], 1 / 5),
        ("token_truncate", 0.4, [2, 3, 0.4, 1, 0.5], [6, 0.4, 0.5], 2 / 5),
        ("token_mask", None, [2, 0, 0.25, 1, 0.5], [0, 0.25, 0.5], 1 / 5),
        ("token_mask", 0.4, [2, 0, 0, 1, 0.5], [0, 0, 0.5], 2 / 5),
        ("sequence_truncate", None, [3, 3, 0.25, 0.5, 0.5], [3, 0.25, 0.5], 1 / 3),
        ("sequence_truncate", 0.4, [3, 3, 0.4, 0.5, 0.5], [3, 0.4, 0.5], 2 / 3),
        ("sequence_mask", None, [0, 0, 0.25, 0.5, 0.5], [0, 0.25, 0.5], 1 / 3),
        ("sequence_mask", 0.4, [0, 0, 0, 0.5, 0.5], [0, 0, 0.5], 2 / 3),
    ],
)
def test_weights(
    mode: str, clip_min: float | None, weights: list[float], of_sequences: list[float], limited: float
) -> None:
    found = sampler_correction(LOG_RATIO, SEQUENCES, 3, CorrectionOptions(mode, 3.0, clip_min))
    torch.testing.assert_close(found.by_token, torch.tensor(weights, dtype=torch.float32))
    torch.testing.assert_close(found.log_by_sequence.exp(), torch.tensor(of_sequences, dtype=torch.float32))
    total, number = found.metrics["sampling/importance_sampling_limited"]
    assert float(total / number) == pytest.approx(limited)


def test_metrics_are_of_the_ratios_as_they_were() -> None:
    of_tokens = sampler_correction(LOG_RATIO, SEQUENCES, 3, CorrectionOptions("token_mask", 1.5, 0.9))
    of_sequences = sampler_correction(LOG_RATIO, SEQUENCES, 3, CorrectionOptions("sequence_truncate", 1.5, 0.9))
    for found, mean, low, high in ((of_tokens, 7.75 / 5, 0.25, 4.0), (of_sequences, 8.75 / 3, 0.25, 8.0)):
        total, number = found.metrics["sampling/importance_sampling_ratio/mean"]
        assert float(total / number) == pytest.approx(mean)
        assert float(found.minima["sampling/importance_sampling_ratio/min"]) == pytest.approx(low)
        assert float(found.maxima["sampling/importance_sampling_ratio/max"]) == pytest.approx(high)
        total, number = found.metrics["sampling/sampling_logp_difference/mean"]
        assert float(total) / number == pytest.approx(math.log(2) * (1 + 2 + 2 + 0 + 1) / 5)
        assert float(found.maxima["sampling/sampling_logp_difference/max"]) == pytest.approx(2 * math.log(2))


def test_no_limits_and_no_targets() -> None:
    whole = sampler_correction(LOG_RATIO, SEQUENCES, 3, CorrectionOptions("sequence_mask", None, None))
    torch.testing.assert_close(whole.by_token, torch.tensor([8.0, 8.0, 0.25, 0.5, 0.5]))
    # The fourth completion has no targets, as one that was cut off may have none: it is no ratio of 1.
    found = sampler_correction(LOG_RATIO, SEQUENCES, 4, CorrectionOptions("sequence_mask", 3.0, None))
    assert float(found.metrics["sampling/importance_sampling_limited"][1]) == 3
    empty = sampler_correction(torch.zeros(0), torch.zeros(0, dtype=torch.int64), 2, CorrectionOptions())
    assert empty.by_token.shape == (0,)
    assert float(empty.metrics["sampling/importance_sampling_ratio/mean"][1]) == 0
    assert float(empty.minima["sampling/importance_sampling_ratio/min"]) == math.inf
    far = sampler_correction(torch.full((2,), 90.0), torch.zeros(2, dtype=torch.int64), 1, CorrectionOptions())
    assert far.by_token.tolist() == [0.0, 0.0], "what is infinite is masked, and no number that is none"


LOGPROBS = torch.tensor([-1.0, -2.0, -0.5, -1.5, -0.25])
ADVANTAGES = torch.tensor([1.0, -1.0, 0.5])


def loss_of(loss_type: str, **changes: object) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
    """Terms before they are divided, the gradient of the log-probs, metrics."""
    logprobs = LOGPROBS.clone().requires_grad_()
    options = PolicyOptions(loss_type=loss_type, **{k: v for k, v in changes.items() if k != "correction"})  # type: ignore[arg-type]
    given = changes.get("correction")
    loss = policy_loss(
        logprobs,
        torch.zeros(5),
        SEQUENCES,
        ADVANTAGES,
        options,
        reference_logprobs=LOGPROBS - 0.1,
        sampler_log_ratio=None if given is None else LOG_RATIO,
        correction=given,  # type: ignore[arg-type]
    )
    sums = torch.stack([term.sum for term in loss.terms])
    sums.sum().backward()
    assert logprobs.grad is not None
    metrics = {name: float(total) / float(weight) for name, (total, weight) in loss.metrics.items() if float(weight)}
    return sums.detach(), logprobs.grad, metrics


def test_the_policy_gradient_is_weighed_token_by_token_and_the_kl_is_not() -> None:
    """On-policy the gradient of a token's loss is -A, times its weight: 2, 0 (masked), 1/4, 1, 1/2."""
    options = CorrectionOptions("token_mask", 3.0)
    sums, gradient, metrics = loss_of("dapo", correction=options)
    torch.testing.assert_close(gradient, -torch.tensor([2.0, 0.0, -0.25, 0.5, 0.25]))
    torch.testing.assert_close(sums, torch.tensor([-(2.0 + 0.0 - 0.25 + 0.5 + 0.25)]))
    assert metrics["sampling/importance_sampling_limited"] == pytest.approx(0.2)
    plain, _, without = loss_of("dapo", beta=0.1)
    weighed, _, _ = loss_of("dapo", beta=0.1, correction=options)
    assert "sampling/importance_sampling_limited" not in without
    assert plain[0] != weighed[0] and plain[1] == weighed[1]


def test_a_completion_that_weighs_nothing_has_no_gradient() -> None:
    """Whole completions weigh 8, 1/4, 1/2: the first is masked. `grpo` takes means over a completion's tokens."""
    _, gradient, _ = loss_of("grpo", correction=CorrectionOptions("sequence_mask", 3.0))
    torch.testing.assert_close(gradient, torch.tensor([0.0, 0.0, 0.25, -0.125, -0.125]))


def test_vespo_takes_the_correction_into_its_own_weight() -> None:
    """φ(w) = w^k e^(λ(1-w)) with w = 8 → 3 (truncated), 1/4, 1/2; k, λ = 2, 3 where A >= 0 and 3, 2 where not."""
    _, gradient, _ = loss_of("vespo", correction=CorrectionOptions("sequence_truncate", 3.0))
    phi = [3.0**2 * math.exp(3 * (1 - 3.0)), 0.25**3 * math.exp(2 * 0.75), 0.5**2 * math.exp(3 * 0.5)]
    expected = [-phi[0], -phi[0], phi[1], -0.5 * phi[2], -0.5 * phi[2]]
    torch.testing.assert_close(gradient, torch.tensor(expected))


def test_what_is_off_policy_is_off_what_sampled() -> None:
    """The second completion, the only one with a negative advantage, was sampled with 4 times the probability that the
    trainer gives it: mean of log π_sampler - log π = log 4 = 1.39."""
    options = CorrectionOptions("token_truncate", 3.0)
    for threshold, kept in ((1.3, 0.0), (1.5, 0.25)):
        _, gradient, _ = loss_of("dapo", off_policy_mask_threshold=threshold, correction=options)
        assert gradient[2].item() == pytest.approx(kept)
    _, gradient, _ = loss_of("dapo", off_policy_mask_threshold=1.3)
    assert gradient[2].item() == 1.0
