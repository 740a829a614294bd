"""Losses are pure functions of tensors. They return sums, never means: the trainer divides each term once, by the
weight that all micro-batches and all ranks of the optimizer step have together."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Term:
    """A part of a loss.

    Args:
        sum: () sum over the batch, with gradient.
        divide_by: name of the weight that it is divided by; one of the method's `weights(batch)`.
        coefficient: factor of this term in the whole loss.
    """

    sum: torch.Tensor
    divide_by: str
    coefficient: float = 1.0


@dataclass(frozen=True)
class Loss:
    """Terms of a loss, and what is logged beside it, over however many batches.

    Args:
        terms: the loss is their sum.
        metrics: name → (sum, weight); their ratio is logged.
        minima, maxima: name → () smallest and largest value of the batch.
    """

    terms: tuple[Term, ...]
    metrics: dict[str, tuple[torch.Tensor, float | torch.Tensor]] = field(default_factory=dict)
    minima: dict[str, torch.Tensor] = field(default_factory=dict)
    maxima: dict[str, torch.Tensor] = field(default_factory=dict)

    def emptied(self) -> Loss:
        """The same names, with what no batch at all would count."""
        infinity = torch.tensor(torch.inf)
        return Loss(
            (),
            {name: (torch.zeros_like(total), 0.0) for name, (total, _) in self.metrics.items()},
            {name: infinity.to(value.device) for name, value in self.minima.items()},
            {name: -infinity.to(value.device) for name, value in self.maxima.items()},
        )
