"""How far two runs are apart whose steps are cut differently."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from equal_steps import logged, steps_seen
from safetensors.torch import load_file

from posttrain.provenance import is_timing

# The first two are means, over micro-batches, of their smallest and largest values; the last is transformers' count of
# micro-batches, of which an epoch's last step may have fewer. Nothing else depends on the cut.
_OF_MICRO_BATCHES = ("clip_ratio/low_min", "clip_ratio/high_max", "epoch")
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Apart:
    """What two runs differ in, over all steps; where a completion comes out otherwise, in the steps before that one.

    Args:
        steps: of the optimizer.
        same_rows: steps in which both saw the same rows.
        sequences: documents, sides of pairs or completions, in all steps.
        same_sequences: that both saw in the same step, to the last token.
        first_other: the first step in which one was another.
        loss: largest difference, of losses above 1 relative.
        gradient_norm: largest relative difference.
        metric: largest difference of all other numbers that are logged, above 1 relative.
        worst_metric: the name of that one.
        weights: largest difference of a weight at the end, as a share of the largest change by training.
    """

    steps: int
    same_rows: int
    sequences: int
    same_sequences: int
    first_other: int | None
    loss: float
    gradient_norm: float
    metric: float
    worst_metric: str
    weights: float

    @property
    def is_equal(self) -> bool:
        """Whether it is one run up to rounding. A draw may fall on the other side of a bound that rounding moves, but
        not in the first step, which has the same weights."""
        is_close = max(self.loss, self.gradient_norm, self.metric) <= TOLERANCE
        return is_close and self.same_rows == self.steps and self.first_other != 1


def compare(first: Path, second: Path, start: Path) -> Apart:
    """Lays two runs beside each other.

    Args:
        first, second: folders with model/ and steps.jsonl.
        start: model folder that both began with.
    """
    seen = list(zip(*(steps_seen(folder / "steps.jsonl") for folder in (first, second)), strict=True))
    others = [step for step, (one, other) in enumerate(seen, 1) if one.sequences != other.sequences]
    largest = _largest(first / "model", second / "model", min(others, default=len(seen) + 1))
    worst = max(
        (name for name in largest if "loss" not in name and name != "grad_norm"), key=lambda name: largest[name]
    )
    return Apart(
        steps=len(seen),
        same_rows=sum(one.rows == other.rows for one, other in seen),
        sequences=sum(one.sequences.total() for one, _ in seen),
        same_sequences=sum((one.sequences & other.sequences).total() for one, other in seen),
        first_other=min(others, default=None),
        loss=max(largest["loss"], largest.get("eval_loss", 0.0)),
        gradient_norm=largest["grad_norm"],
        metric=largest[worst],
        worst_metric=worst,
        weights=_weights(first / "model", second / "model", start),
    )


def _largest(first: Path, second: Path, before: int) -> dict[str, float]:
    """Name of a logged number → how far it is apart in the steps before one."""
    apart: dict[str, float] = defaultdict(float)
    for one, other in zip(logged(first), logged(second), strict=True):
        assert one.keys() == other.keys(), (first, second)
        if one["step"] >= before:
            break
        for name, value in one.items():
            if is_timing(name) or name in _OF_MICRO_BATCHES:
                continue
            scale = abs(value) if name == "grad_norm" and value else max(1.0, abs(value))
            apart[name] = max(apart[name], abs(other[name] - value) / scale)
    return apart


def _weights(first: Path, second: Path, start: Path) -> float:
    a, b, before = (dict(_tensors(folder)) for folder in (first, second, start))
    assert a.keys() == b.keys()
    apart = max((a[name] - b[name]).abs().max().item() for name in a)
    # An adapter and a new score head have no start here: the first begins at 0, the second near it.
    moved = max((value - before.get(name, torch.zeros(()))).abs().max().item() for name, value in a.items())
    return apart / moved


def _tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for file in sorted(folder.glob("*.safetensors")):
        yield from load_file(file).items()
