"""RLOO's loss: REINFORCE on whole sequences, with the ratio of a sequence's probability under the policy to that when
it was sampled, clipped as in PPO (Ahmadian et al., Back to Basics, arXiv 2402.14740; Schulman et al., arXiv 1707.06347,
eq. 7).

Where it departs from the paper: the paper takes one gradient step a sample and needs no ratio; on-policy, both have the
same gradient. From TRL: the mean is over the sequences of the whole optimizer step, there over those of a micro-batch
first; and ratios stop growing at e^20 (`ratios.MAX_LOG_RATIO`). The KL penalty is part of the reward:
`advantages.leave_one_out_advantages`.
"""

from __future__ import annotations

import torch

from posttrain.losses import Loss, Term
from posttrain.losses.ratios import clip_metrics, exp_bounded, log_ratios, sums_by_sequence


def leave_one_out_loss(
    logprobs: torch.Tensor,
    entropy: torch.Tensor,
    sequence_ids: torch.Tensor,
    advantages: torch.Tensor,
    old_logprobs: torch.Tensor | None = None,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
) -> Loss:
    """Mean over sequences of -min(ρA, clip(ρ, 1 - ε, 1 + ε_high)·A), ρ = exp Σ (log π - log π_old) over a sequence.

    Args:
        logprobs: (N,) of the targets under the policy.
        entropy: (N,) of the predicted distributions, in nats; for the metrics.
        sequence_ids: (N,) which of the C sequences a target belongs to. A sequence without targets has no gradient.
        advantages: (C,).
        old_logprobs: (N,) when the completions were sampled; None = exactly on-policy, ρ = 1.
        epsilon: ε.
        epsilon_high: ε_high; None = ε.

    Returns:
        One term, divided by "sequences"; entropy a token, and clip_ratio/*, of sequences.
    """
    num_sequences = advantages.shape[0]
    epsilon_high = epsilon if epsilon_high is None else epsilon_high
    ratio = exp_bounded(sums_by_sequence(log_ratios(logprobs, old_logprobs), sequence_ids, num_sequences))
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon_high)
    losses = -torch.minimum(ratio * advantages, clipped * advantages)
    each = torch.arange(num_sequences, device=advantages.device)
    return Loss(
        terms=(Term(losses.sum(), "sequences"),),
        metrics={
            "entropy": (entropy.detach().sum(), float(entropy.shape[0])),
            **clip_metrics(ratio, advantages, each, num_sequences, epsilon, epsilon_high),
        },
    )
