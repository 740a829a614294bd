"""Signs that something is wrong: losses that leap, gradients that are gone, evaluation that is not finite."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import Any

import torch

WINDOW = 50  # losses that a loss is compared with
FEWEST = 20  # of them, before any is
DEVIATIONS = 10.0
DEAD_STEPS = 10
QUIET_STEPS = 100  # between two warnings of a kind

NO_TARGETS = (
    "its batches held no token to train on; with --mask_truncated_completions that is so where all completions were "
    "cut off at --max_completion_length"
)
NO_VARIANCE = (
    "all completions of each prompt had the same reward (frac_reward_zero_std), so nothing tells them apart: other "
    "prompts or rewards, a higher --temperature, or --dynamic_sampling"
)
NO_REASON = "frozen parameters, or differences too small for the precision of training (--dtype, --bf16, --fp16)"


@dataclass
class Watch:
    """What is known of the steps so far.

    Args:
        losses: of the last WINDOW steps.
        dead_steps: steps in a row without a gradient.
        quiet_until: the step before which there is no further warning, by its kind.
    """

    losses: list[float] = field(default_factory=list)
    dead_steps: int = 0
    quiet_until: dict[str, int] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """Numbers, lists and dicts."""
        return {"losses": self.losses, "dead_steps": self.dead_steps, "quiet_until": self.quiet_until}

    def spike(self, step: int, loss: float) -> str | None:
        """Takes the loss of a step, and says so where it is far above those before: by DEVIATIONS times their deviation
        from their median, of which `deviation_of` is the estimate.

        Args:
            step: number of the step.
            loss: finite.
        """
        before, self.losses = self.losses, [*self.losses, loss][-WINDOW:]
        if len(before) < FEWEST:
            return None
        median = statistics.median(before)
        if loss <= median + DEVIATIONS * deviation_of(before, median) or not self._may_speak("spike", step):
            return None
        return f"step {step}: the loss is {loss:.4g}; of the {len(before)} steps before, the median is {median:.4g}"

    def dead(self, step: int, gradient_norm: float, num_targets: float, has_signal: bool) -> str | None:
        """Takes the norm of a step's gradient, and says so where it has been exactly 0 for DEAD_STEPS in a row.

        Args:
            step: number of the step.
            gradient_norm: finite.
            num_targets: tokens, or pairs, that the step trained on.
            has_signal: whether a completion is better or worse than another; True for methods without advantages.
        """
        self.dead_steps = 0 if gradient_norm else self.dead_steps + 1
        if self.dead_steps < DEAD_STEPS or not self._may_speak("dead", step):
            return None
        reason = NO_TARGETS if not num_targets else NO_REASON if has_signal else NO_VARIANCE
        return (
            f"step {step}: the gradient has been exactly 0 for {self.dead_steps} steps in a row. In this one: {reason}"
        )

    def _may_speak(self, kind: str, step: int) -> bool:
        if step < self.quiet_until.get(kind, 0):
            return False
        self.quiet_until[kind] = step + QUIET_STEPS
        return True


def deviation_of(losses: list[float], median: float) -> float:
    """The standard deviation of most losses, whatever the largest ones are: 1.4826 times their median distance from
    the median, which is the standard deviation where they are normally distributed (Rousseeuw and Croux, Alternatives
    to the Median Absolute Deviation, 1993); but 0.02 and a twentieth of the median at least, so that a loss that hardly
    changes may.

    Args:
        losses: finite.
        median: of them.
    """
    distance = statistics.median(abs(loss - median) for loss in losses)
    return max(1.4826 * distance, 0.02 + abs(median) / 20)


class NotFinite:
    """Where the rows stand of those batches of an evaluation whose loss is not finite.

    Losses are looked at AT_ONCE at a time, so that a GPU is waited for now and then only.
    """

    AT_ONCE = 64

    def __init__(self) -> None:
        self._places: list[tuple[str, ...]] = []
        self._waiting: list[tuple[torch.Tensor, tuple[str, ...]]] = []

    def add(self, loss: torch.Tensor, places: tuple[str, ...]) -> None:
        """Takes a batch.

        Args:
            loss: ().
            places: of its rows.
        """
        self._waiting.append((loss, places))
        if len(self._waiting) == self.AT_ONCE:
            self.places()

    def places(self) -> list[tuple[str, ...]]:
        """Those of all batches so far."""
        losses = torch.stack([loss for loss, _ in self._waiting]).tolist() if self._waiting else []
        pairs = zip(self._waiting, losses, strict=True)
        self._places += [places for (_, places), loss in pairs if not math.isfinite(loss)]
        self._waiting = []
        return self._places


def is_finite(value: Any) -> bool:
    """Whether a logged value is a number that is neither infinite nor NaN."""
    return isinstance(value, int | float) and math.isfinite(value)
