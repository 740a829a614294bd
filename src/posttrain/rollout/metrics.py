"""What is logged of the completions of a generation, beside their rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

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
