"""Numbers that go wrong on purpose, at chosen steps of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

from posttrain.trainer import PostTrainer


def spoil(
    monkeypatch: pytest.MonkeyPatch,
    steps: Iterable[int],
    change: Callable[[torch.Tensor], torch.Tensor] = lambda loss: loss * torch.nan,
    rank: int | None = None,
) -> None:
    """Changes the loss of the last micro-batch of some steps.

    Args:
        monkeypatch: of the test.
        steps: counted from 1.
        change: loss → loss.
        rank: the process where it is changed; None: in all.
    """
    wanted, compute = set(steps), PostTrainer.compute_loss

    def compute_loss(self: PostTrainer, *args: Any, **kwargs: Any) -> Any:
        share = compute(self, *args, **kwargs)
        here = rank is None or rank == self.args.process_index
        is_last = self.accelerator.sync_gradients
        return change(share) if here and is_last and self.state.global_step + 1 in wanted else share

    monkeypatch.setattr(PostTrainer, "compute_loss", compute_loss)


class NanGradient(torch.autograd.Function):
    """A loss as it is, with a gradient of NaN."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor) -> torch.Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * torch.nan
