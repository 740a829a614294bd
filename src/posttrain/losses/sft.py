"""Losses of supervised fine-tuning: functions of the log-probs (N,) of the target tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch

from posttrain.losses import Loss, Term


def nll(logprobs: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each target: -log p. (N,) → (N,)."""
    return -logprobs


def dft(logprobs: torch.Tensor) -> torch.Tensor:
    """Dynamic fine-tuning (arXiv 2508.05629, eq. 9): -sg(p) · log p, each token weighted by its own probability.
    (N,) → (N,)."""
    return -logprobs.detach().exp() * logprobs


LOSSES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"nll": nll, "dft": dft}


def sft_loss(logprobs: torch.Tensor, entropy: torch.Tensor, is_argmax: torch.Tensor, loss_type: str) -> Loss:
    """Mean over target tokens of a token loss.

    Args:
        logprobs: (N,) of the targets.
        entropy: (N,) of the predicted distributions, in nats.
        is_argmax: (N,) 1 where the target is the most probable token.
        loss_type: a name in LOSSES.
    """
    count = float(logprobs.shape[0])
    return Loss(
        terms=(Term(LOSSES[loss_type](logprobs).sum(), "targets"),),
        metrics={
            "entropy": (entropy.detach().sum(), count),
            "mean_token_accuracy": (is_argmax.sum(), count),
        },
    )
