"""A step of sampling as a CUDA graph: one launch in place of some hundreds, between which a GPU would wait for Python.

A graph runs the kernels that were launched while it was captured, on the same memory, so a step that is to be captured
computes with the same shapes each time, and what changes from step to step stands in tensors: the tokens, their
positions, the numbers to draw with, and how many tokens are held (`DecodingState` with `static=True`). Where shapes do
change, because rows have left or more columns are attended to, a new graph takes the place of the old one.

CUDA graphs: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch

logger = logging.getLogger(__name__)

Tensors = tuple[torch.Tensor, ...]


class Captured:
    """The step, captured at the second call with the same shapes; the first one loads kernels and asks for workspaces,
    which must not happen in a capture.

    Args:
        step: of tensors to tensors; what it changes in place, it changes in the same way when it is run again.
        shapes: what its shapes depend on beside those of its inputs.
        is_first: of this model. What waits for the GPU is then refused before a capture begins: one that fails leaves
            torch's memory as in a capture (before torch 2.13). Nothing else may use the GPU meanwhile.
    """

    def __init__(self, step: Callable[..., Tensors], shapes: Callable[[], Hashable], is_first: bool = False):
        self._step, self._shapes, self._is_first = step, shapes, is_first
        self._key: Hashable = None
        self._replay: Callable[[], Any] | None = None
        self._inputs: Tensors = ()
        self._outputs: Tensors = ()
        self.refused = False  # whether a capture has failed

    def __call__(self, *inputs: torch.Tensor) -> Tensors:
        if self.refused:
            return self._step(*inputs)
        key = (*(one.shape for one in inputs), self._shapes())
        if key != self._key:
            # The old graph's memory is let go before there is a new one.
            self._key, self._replay, self._inputs, self._outputs = key, None, (), ()
            if not self._is_first:
                return self._step(*inputs)
            self._is_first = False
            try:
                with _waiting_is_an_error():
                    return self._step(*inputs)
            except RuntimeError as error:
                return self._without(error, inputs)
        if self._replay is None:
            self._inputs = tuple(one.clone() for one in inputs)
            try:
                self._replay, self._outputs = self._capture(self._inputs)
            except RuntimeError as error:  # something waits for the GPU, or is not there for captures
                return self._without(error, inputs)
        for held, given in zip(self._inputs, inputs, strict=True):
            held.copy_(given)
        self._replay()
        return tuple(one.clone() for one in self._outputs)

    def _without(self, error: RuntimeError, inputs: Tensors) -> Tensors:
        self.refused, self._inputs = True, ()
        logger.warning("Sampling goes on without CUDA graphs: %s", str(error).strip().splitlines()[0])
        return self._step(*inputs)

    def _capture(self, inputs: Tensors) -> tuple[Callable[[], Any], Tensors]:
        graph = torch.cuda.CUDAGraph()
        # A capture that fails would leave this thread on its stream. Each has memory of its own: what an earlier graph
        # had cannot be taken again where segments of memory are extended (expandable_segments). Rewards may use the
        # GPU meanwhile, in threads of their own.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, capture_error_mode="thread_local"),
        ):
            outputs = self._step(*inputs)
        return graph.replay, outputs


@contextlib.contextmanager
def _waiting_is_an_error() -> Iterator[None]:
    if not torch.cuda.is_available():
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
