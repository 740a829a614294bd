"""Activations that wait in the CPU's memory until the backward pass needs them.

What autograd saves goes through two hooks. The first copies it from the GPU to page-locked memory, beside the forward
pass, in a stream of its own; the second takes it back, and starts to fetch what was saved just before it, which the
backward pass wants next. Weights stay where they are, and so does what is small. A block of memory that is saved
several times (by three projections of the same states, or as views of it) is copied once.

`torch.autograd.graph.save_on_cpu` does the same, weights and small tensors too, a copy each time, in the stream that
computes.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any, Protocol

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

SMALLEST = 2**20  # bytes of a block that is worth a copy
_UNDER_WAY = 2  # copies to the CPU whose source is still held
_AHEAD = 2  # blocks that are fetched before they are asked for


class Copies(Protocol):
    """How blocks of bytes are copied beside what is computed."""

    def takes(self, tensor: torch.Tensor) -> bool:
        """Whether it lies where memory is short."""

    def host(self, size: int) -> torch.Tensor:
        """(size,) bytes in the CPU's memory."""

    def device(self, size: int, device: torch.device) -> torch.Tensor:
        """(size,) bytes on the device."""

    def start(self, target: torch.Tensor, source: torch.Tensor) -> Any:
        """Copies after all that has been asked of the device so far; returns what `wait` takes."""

    def wait(self, copy: Any) -> None:
        """What is asked of the device from now on comes after the copy."""


class CudaCopies:
    """Copies in a stream of their own, from and to page-locked memory."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()

    def takes(self, tensor: torch.Tensor) -> bool:
        return tensor.is_cuda

    def host(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def device(self, size: int, device: torch.device) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, device=device)

    def start(self, target: torch.Tensor, source: torch.Tensor) -> Any:
        # Memory of either side may have been another tensor's just now, which is still being read.
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)
            return self.stream.record_event()

    def wait(self, copy: Any) -> None:
        torch.cuda.current_stream().wait_event(copy)


def offloading_from(device: torch.device) -> Offloading | None:
    """For `--activation_offloading`: a context for forward passes on a GPU; None where there is nothing to do.

    Args:
        device: that is trained on.
    """
    return Offloading(CudaCopies()) if device.type == "cuda" else None


class Offloading(saved_tensors_hooks):
    """A context for one forward pass after the other: what autograd saves in it waits in the CPU's memory.

    Args:
        copies: how.
        smallest: bytes of a block that is worth a copy.
    """

    def __init__(self, copies: Copies, smallest: int = SMALLEST):
        self.copies, self.smallest = copies, smallest
        self.moved = 0  # bytes of the last pass
        self._blocks: weakref.WeakValueDictionary[tuple[int, int], _Block] = weakref.WeakValueDictionary()
        self._order: list[weakref.ref[_Block]] = []
        self._leaving: deque[_Block] = deque()
        self._coming: list[_Block] = []
        super().__init__(self._pack, self._unpack)

    def __enter__(self) -> None:
        for block in self._coming:  # fetched and then not needed: its memory is written to until the copy ends
            self.copies.wait(block.copy)
        self._coming.clear()
        self._leaving.clear()
        self._order, self.moved = [], 0
        super().__enter__()

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor | _View:
        if not self.copies.takes(tensor) or _is_weight(tensor) or tensor.layout != torch.strided:
            return tensor
        storage = tensor.untyped_storage()
        if storage.nbytes() < self.smallest:
            return tensor
        key = (storage._cdata, tensor._version)
        block = self._blocks.get(key)
        if block is None:
            block = self._blocks[key] = _Block(storage, tensor.device, self._order)
            self._order.append(weakref.ref(block))
            self._send(block)
        return _View(block, tensor.dtype, int(tensor.storage_offset()), tuple(tensor.size()), tensor.stride())

    def _unpack(self, saved: torch.Tensor | _View) -> torch.Tensor:
        if isinstance(saved, torch.Tensor):
            return saved
        block = saved.block
        self._fetch(block)
        if block in self._leaving:  # its memory was not given back
            self._leaving.remove(block)
        if block in self._coming:
            self._coming.remove(block)
            self.copies.wait(block.copy)
        for index in range(max(0, block.index - _AHEAD), block.index):
            earlier = block.order[index]()
            if earlier is not None:
                self._fetch(earlier)
        assert block.on_device is not None
        empty = torch.empty(0, dtype=saved.dtype, device=block.on_device.device)
        return empty.set_(block.on_device.untyped_storage(), saved.offset, saved.size, saved.stride)

    def _send(self, block: _Block) -> None:
        source, block.on_device = block.on_device, None
        assert source is not None
        block.on_host = self.copies.host(source.numel())
        block.copy, block.source = self.copies.start(block.on_host, source), source
        self.moved += source.numel()
        self._leaving.append(block)
        if len(self._leaving) > _UNDER_WAY:
            self._let_go()

    def _let_go(self) -> None:
        """Gives the memory of the oldest copy's source back; what takes its place is computed after the copy."""
        block = self._leaving.popleft()
        self.copies.wait(block.copy)
        block.source = None

    def _fetch(self, block: _Block) -> None:
        if block.on_device is not None:
            return
        if block.source is not None:
            block.on_device = block.source
            return
        assert block.on_host is not None
        block.on_device = self.copies.device(block.on_host.numel(), block.device)
        block.copy = self.copies.start(block.on_device, block.on_host)
        self._coming.append(block)


class _Block:
    """A storage that leaves, and comes back when it is asked for; lives as long as autograd holds a view of it."""

    def __init__(self, storage: torch.UntypedStorage, device: torch.device, order: list[weakref.ref[_Block]]):
        # Of a storage that is gone, another one would have the number while nobody remembers the first.
        self.of = StorageWeakRef(storage)
        self.device, self.order, self.index = device, order, len(order)
        self.on_device: torch.Tensor | None = torch.empty(0, dtype=torch.uint8, device=device).set_(storage)
        self.source: torch.Tensor | None = None
        self.on_host: torch.Tensor | None = None
        self.copy: Any = None


class _View:
    """A tensor on a block."""

    def __init__(self, block: _Block, dtype: torch.dtype, offset: int, size: tuple[int, ...], stride: tuple[int, ...]):
        self.block, self.dtype, self.offset, self.size, self.stride = block, dtype, offset, size, stride


def _is_weight(tensor: torch.Tensor) -> bool:
    """A parameter or a view of one, what autocast has made of one, or of the kinds that FSDP spreads over processes."""
    base: Any = tensor._base if tensor._is_view() else tensor
    if isinstance(base, torch.nn.Parameter) or type(tensor) is not torch.Tensor:
        return True
    if base.grad_fn is None or base.grad_fn.name() != "ToCopyBackward0":
        return False
    ((of, _),) = base.grad_fn.next_functions
    return isinstance(getattr(of, "variable", None), torch.nn.Parameter)
