"""What another engine's samples weigh in a loss: the ratio of the policy as the trainer computes it to the policy as
the sampler did, limited.

Two engines with the same weights give the same token slightly different probabilities: other kernels, other precision,
another order of the sums. Samples of one, trained on with the gradient of the other, are off-policy, and an importance
weight π_trainer / π_sampler makes up for it:

- truncated, min(w, C): Yao et al., Your Efficient RL Framework Secretly Brings You Off-Policy RL Training (2025,
  https://fengyao.notion.site/off-policy-rl), there of tokens; of sequences, and masked, w where w <= C and else 0: Liu
  et al., When Speed Kills Stability (2025, https://richardli.xyz/rl-collapse). A lower limit is IcePop's (Ling Team,
  Every Step Evolves, arXiv 2510.18855), which masks tokens on both sides.
- The weight of a token is the ratio of its two probabilities; that of a sequence the product of the ratios of its
  tokens, which all of them get.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from posttrain.losses.ratios import Metrics, exp_bounded, sums_by_sequence

MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


@dataclass(frozen=True)
class CorrectionOptions:
    """How weights are limited.

    Args:
        mode: one of MODES.
        clip_max: largest weight; None: no limit.
        clip_min: smallest weight; None: no limit.
    """

    mode: str = "sequence_mask"
    clip_max: float | None = 3.0
    clip_min: float | None = None

    @property
    def is_of_sequences(self) -> bool:
        return self.mode.startswith("sequence")

    @property
    def masks(self) -> bool:
        return self.mode.endswith("mask")


@dataclass(frozen=True)
class Correction:
    """Weights of N targets of C sequences.

    Args:
        by_token: (N,), to multiply the loss of each target by.
        log_by_sequence: (C,) log of what a whole sequence weighs: the weight of the sequence, or the product of those
            of its tokens; -inf where one is 0.
        metrics, minima, maxima: of the ratios before they were limited, and of what was limited; as in `Loss`.
    """

    by_token: torch.Tensor
    log_by_sequence: torch.Tensor
    metrics: Metrics
    minima: dict[str, torch.Tensor]
    maxima: dict[str, torch.Tensor]


def sampler_correction(
    log_ratio: torch.Tensor, sequence_ids: torch.Tensor, num_sequences: int, options: CorrectionOptions
) -> Correction:
    """Weights of targets that another engine has sampled.

    Args:
        log_ratio: (N,) log π - log π_sampler, both of the policy that sampled.
        sequence_ids: (N,) which of the C sequences a target belongs to.
        num_sequences: C.
        options: how they are limited.

    Returns:
        Weights, and metrics: sampling/importance_sampling_ratio/mean, min and max, of tokens, or of the sequences that
        have targets; sampling/importance_sampling_limited, the share of them that was truncated or masked; and
        sampling/sampling_logp_difference/mean and max, of |log_ratio|.
    """
    log_ratio = log_ratio.detach()
    if options.is_of_sequences:
        log_weight = sums_by_sequence(log_ratio, sequence_ids, num_sequences)
        counts = sums_by_sequence(torch.ones_like(log_ratio), sequence_ids, num_sequences) > 0
    else:
        log_weight, counts = log_ratio, torch.ones_like(log_ratio, dtype=torch.bool)
    ratio = exp_bounded(log_weight)
    low = 0.0 if options.clip_min is None else options.clip_min
    high = torch.inf if options.clip_max is None else options.clip_max
    outside = (ratio < low) | (ratio > high)
    weight = ratio.masked_fill(outside, 0.0) if options.masks else ratio.clamp(low, high)
    metrics, minima, maxima = _metrics(log_ratio, ratio, outside, counts)
    if options.is_of_sequences:
        return Correction(weight[sequence_ids], weight.log(), metrics, minima, maxima)
    of_sequences = sums_by_sequence(weight.log(), sequence_ids, num_sequences)
    return Correction(weight, of_sequences, metrics, minima, maxima)


def _metrics(
    log_ratio: torch.Tensor, ratio: torch.Tensor, outside: torch.Tensor, counts: torch.Tensor
) -> tuple[Metrics, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    number, infinity = counts.sum().float(), torch.full((1,), torch.inf, device=ratio.device)
    difference = log_ratio.abs()
    ratio_name, difference_name = "sampling/importance_sampling_ratio", "sampling/sampling_logp_difference"
    metrics: Metrics = {
        f"{ratio_name}/mean": ((ratio * counts).sum(), number),
        "sampling/importance_sampling_limited": ((outside & counts).sum().float(), number),
        f"{difference_name}/mean": (difference.sum(), float(log_ratio.shape[0])),
    }
    # A batch without targets has no smallest and no largest.
    minima = {f"{ratio_name}/min": torch.cat([ratio.masked_fill(~counts, torch.inf), infinity]).amin()}
    maxima = {
        f"{ratio_name}/max": torch.cat([ratio.masked_fill(~counts, -torch.inf), -infinity]).amax(),
        f"{difference_name}/max": torch.cat([difference, -infinity]).amax(),
    }
    return metrics, minima, maxima
