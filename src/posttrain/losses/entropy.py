"""What a step makes of the policy's entropy: which tokens count, and how strong a bonus is.

Where it departs from TRL: the quantile of `top_entropy_mask` is that of the entropies it is given, meant to be a whole
optimizer step's; there it is that of one micro-batch, over all ranks.
"""

from __future__ import annotations

import math

import torch


def top_entropy_mask(entropies: torch.Tensor, top_entropy_quantile: float) -> torch.Tensor:
    """The tokens where the policy was least sure (Beyond the 80/20 Rule, arXiv 2506.01939).

    Args:
        entropies: (N,) of all targets of the optimizer step, of all ranks, in nats.
        top_entropy_quantile: share of the tokens to keep, 0 (the highest alone) to 1 (all).

    Returns:
        (N,) 1 where the entropy is at least the (1 - share) quantile, interpolated linearly between two entropies.
    """
    if not entropies.numel():
        return torch.zeros_like(entropies)
    # Not torch.quantile: it refuses more than 2^24 values.
    place = (1 - top_entropy_quantile) * (entropies.numel() - 1)
    ordered = entropies.float().sort().values
    threshold = torch.lerp(ordered[math.floor(place)], ordered[math.ceil(place)], place - math.floor(place))
    return (entropies >= threshold).float()


def next_entropy_coef(
    coef: float, entropy: float, target: float, delta: float, minimum: float, maximum: float
) -> float:
    """The coefficient after a step: one `delta` up if the entropy was at or below its target, one down if above it,
    within bounds (adaptive entropy control of Skywork-OR1, arXiv 2505.22312).

    Args:
        coef: of the step.
        entropy: the step's mean over the tokens that the bonus acts on, all ranks, in nats.
        target, delta, minimum, maximum: the flags entropy_target, entropy_coef_delta, entropy_coef_min and _max.
    """
    return min(coef + delta, maximum) if entropy <= target else max(coef - delta, minimum)


def applied_entropy_coef(coef: float, last_entropy: float | None, target: float) -> float:
    """The coefficient that adaptive control applies in a step: 0 before the first measurement (None) and while the last
    step's entropy was above its target (arXiv 2505.22312)."""
    return coef if last_entropy is not None and last_entropy <= target else 0.0
