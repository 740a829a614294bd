"""What is logged of the completions of a generation, beside their rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from posttrain.losses import Loss

if TYPE_CHECKING:
    from posttrain.rollout.collect import Rollout


def length_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Lengths of completions in tokens, of all and of those that ended (0 where none did), and the share cut off."""
    lengths = np.array([len(rollout.token_ids) for rollout in rollouts])
    ended = np.array([rollout.ended for rollout in rollouts])
    terminated = lengths[ended] if ended.any() else np.zeros(1)
    return {
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(1 - ended.mean()),
        "completions/mean_terminated_length": float(terminated.mean()),
        "completions/min_terminated_length": float(terminated.min()),
        "completions/max_terminated_length": float(terminated.max()),
    }


def as_loss(metrics: Mapping[str, float], device: torch.device, weight: float = 1.0) -> Loss:
    """Metrics of a generation in the form that the trainer adds up.

    Args:
        metrics: by name.
        device: of the trainer.
        weight: of this generation in the mean over those since the last line, or over those of an evaluation.
    """
    values = {name: torch.tensor(weight * value, device=device) for name, value in metrics.items()}
    return Loss((), {name: (value, weight) for name, value in values.items()})
