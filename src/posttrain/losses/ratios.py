"""What the losses of reinforcement learning share: importance ratios, estimators of the KL divergence, sums over the
targets of a sequence, and how often a ratio was clipped."""

from __future__ import annotations

from collections.abc import Callable

import torch

# Log-ratios are bounded by this from above before exp. e^20 is 5e8: no ratio that says anything comes near it, and
# float32 neither overflows in the sums nor, with a gradient of that size, in the norm of the gradient.
MAX_LOG_RATIO = 20.0

Metrics = dict[str, tuple[torch.Tensor, float | torch.Tensor]]


def sums_by_sequence(values: torch.Tensor, sequence_ids: torch.Tensor, num_sequences: int) -> torch.Tensor:
    """Sums over the targets of each sequence, 0 where it has none. (N,), (N,) → (C,)."""
    return torch.zeros(num_sequences, dtype=values.dtype, device=values.device).index_add(0, sequence_ids, values)


def log_ratios(logprobs: torch.Tensor, old_logprobs: torch.Tensor | None) -> torch.Tensor:
    """log π(token) - log π_old(token). (N,), (N,) → (N,). None: exactly on-policy, 0 everywhere, with the gradient."""
    return logprobs - (logprobs.detach() if old_logprobs is None else old_logprobs)


def exp_bounded(log_ratio: torch.Tensor) -> torch.Tensor:
    """exp, constant beyond MAX_LOG_RATIO. Any shape."""
    return log_ratio.clamp(max=MAX_LOG_RATIO).exp()


def k1(log_ratio: torch.Tensor) -> torch.Tensor:
    """-log r. Unbiased, of either sign. Without an importance ratio its gradient, log π's, has the mean 0: in a loss it
    needs one, in a reward it does not."""
    return -log_ratio


def k2(log_ratio: torch.Tensor) -> torch.Tensor:
    """(log r)²/2. Biased, and of low variance; its gradient is that of the KL divergence without bias, on-policy."""
    return log_ratio.square() / 2


def k3(log_ratio: torch.Tensor) -> torch.Tensor:
    """r - 1 - log r. Unbiased and never negative (DeepSeekMath, arXiv 2402.03300, eq. 4)."""
    return exp_bounded(log_ratio) - 1 - log_ratio


ESTIMATORS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"k1": k1, "k2": k2, "k3": k3}


def kl_estimates(logprobs: torch.Tensor, reference_logprobs: torch.Tensor, estimator: str) -> torch.Tensor:
    """One-sample estimates of KL(policy ‖ reference) at tokens that the policy drew, with r = reference / policy
    (J. Schulman, Approximating KL Divergence, http://joschu.net/blog/kl-approx.html).

    Args:
        logprobs: (N,) under the policy.
        reference_logprobs: (N,) under the reference.
        estimator: a name in ESTIMATORS.

    Returns:
        (N,) in nats.
    """
    return ESTIMATORS[estimator](reference_logprobs - logprobs)


def clip_metrics(
    ratio: torch.Tensor,
    advantages: torch.Tensor,
    sequence_ids: torch.Tensor,
    num_sequences: int,
    epsilon: float,
    epsilon_high: float,
) -> Metrics:
    """How much of a batch was clipped: below with a negative advantage, above with a positive one.

    Args:
        ratio: (M,) of tokens or of sequences.
        advantages: (M,).
        sequence_ids: (M,) which of the C sequences an entry belongs to; C, 0 to C - 1, where M are the sequences.
        num_sequences: C.
        epsilon, epsilon_high: the clip range is 1 - epsilon to 1 + epsilon_high.

    Returns:
        clip_ratio/low_mean, high_mean and region_mean as (sum, M); low_min and high_max, of the shares of the sequences
        that have entries, as (value, 1).
    """
    ratio = ratio.detach()
    low = ((ratio < 1 - epsilon) & (advantages < 0)).float()
    high = ((ratio > 1 + epsilon_high) & (advantages > 0)).float()
    counts = sums_by_sequence(torch.ones_like(low), sequence_ids, num_sequences)
    shares_low = sums_by_sequence(low, sequence_ids, num_sequences) / counts.clamp(min=1)
    shares_high = sums_by_sequence(high, sequence_ids, num_sequences) / counts.clamp(min=1)
    has_any = (counts > 0).any().float()
    count = float(ratio.shape[0])
    return {
        "clip_ratio/low_mean": (low.sum(), count),
        "clip_ratio/high_mean": (high.sum(), count),
        "clip_ratio/region_mean": ((low + high).sum(), count),
        "clip_ratio/low_min": (torch.where(counts > 0, shares_low, 1.0).amin() * has_any, has_any),
        "clip_ratio/high_max": (shares_high.amax(), has_any),
    }
