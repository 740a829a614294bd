"""Where the time of steps goes, by torch's profiler: how much of it the GPU was busy, with what, what that means."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch.autograd import DeviceType

# By a part of the kernel's name, the first to fit; anything else passes over its numbers one by one.
KINDS = {
    "attention": ("flash", "fmha", "attn", "attention"),
    "products": ("gemm", "cutlass", "cublas", "nvjet", "xmma", "::mm", "::addmm", "::bmm", "gemv", "splitk"),
    "optimizer": ("adam", "multi_tensor", "foreach"),
    "copies": ("memcpy", "memset", "copy_"),
}
OTHER = "element by element, sums"
# From which share of the time on the GPU counts as busy, and from which share of a peak that peak as the limit.
BUSY, REACHED = 0.85, 0.5


class Event(NamedTuple):
    """A kernel or a copy on the GPU; times in nanoseconds."""

    start: int
    duration: int
    name: str


def busy_time(events: Iterable[Event]) -> int:
    """Nanoseconds in which at least one of the events goes on: those that overlap count once."""
    total, end = 0, 0
    for event in sorted(events):
        begin = max(event.start, end)
        if event.start + event.duration > begin:
            total += event.start + event.duration - begin
            end = event.start + event.duration
    return total


def kind_of(name: str) -> str:
    """What a kernel does, by its name."""
    lower = name.lower()
    if lower.startswith("triton_"):  # named after all that has been fused into it
        return OTHER
    return next((kind for kind, parts in KINDS.items() if any(part in lower for part in parts)), OTHER)


def verdict(busy: float, operations: float | None = None, memory: float | None = None, products: float = 0.0) -> str:
    """What holds the steps back.

    Args:
        busy: share of the time in which the GPU computes.
        operations: share of its peak of operations that is reached, all in all; None: not known.
        memory: the same of its memory's speed.
        products: share of the busy time that goes into products and attention.
    """
    if busy < BUSY:
        return f"launch-bound: the GPU waits {1 - busy:.0%} of the time"
    if memory is not None and memory >= REACHED:
        return f"memory-bound: {memory:.0%} of the memory's speed"
    if operations is not None and operations >= REACHED:
        return f"compute-bound: {operations:.0%} of the peak"
    if products < 0.5:
        return f"memory-bound: {1 - products:.0%} of the busy time passes over numbers one by one"
    return f"bound by its kernels: products and attention take {products:.0%} of the busy time, below their peak"


def summary(profiler: Any) -> dict[str, Any]:
    """The profile of a few steps. Without a GPU, that of the operations of the CPU that no other one holds.

    Args:
        profiler: torch's, when it has ended.
    """
    found = list(profiler.profiler.kineto_results.events())
    on_gpu = [event for event in found if event.device_type() == DeviceType.CUDA and not event.is_user_annotation()]
    events = [Event(event.start_ns(), event.duration_ns(), event.name()) for event in on_gpu or found]
    # What a user has named, or a whole graph, spans other events.
    events = [event for event in events if event.duration and not event.name.startswith(("ProfilerStep", "## "))]
    if not on_gpu:
        events = _outermost(events)
    begin = min(event.start_ns() for event in found)
    end = max(event.start_ns() + event.duration_ns() for event in found)
    by_kind: dict[str, float] = defaultdict(float)
    by_name: dict[str, list[float]] = defaultdict(list)
    for event in events:
        by_kind[kind_of(event.name)] += event.duration
        by_name[event.name].append(event.duration)
    total = sum(by_kind.values()) or 1.0
    shares = {kind: value / total for kind, value in sorted(by_kind.items(), key=lambda item: -item[1])}
    longest = sorted(by_name.items(), key=lambda item: -sum(item[1]))[:15]
    busy = busy_time(events) / max(1, end - begin)
    products = shares.get("products", 0.0) + shares.get("attention", 0.0)
    return {
        "on": "GPU" if on_gpu else "CPU",
        "milliseconds": (end - begin) / 1e6,
        "kernels": len(events),
        "microseconds a kernel": total / 1e3 / max(1, len(events)),
        "busy": busy,
        "shares of the busy time": shares,
        "longest": [{"name": name[:120], "calls": len(times), "share": sum(times) / total} for name, times in longest],
        "products": products,
        "verdict": verdict(busy, products=products) if on_gpu else "not on a GPU",
    }


def _outermost(events: list[Event]) -> list[Event]:
    kept: list[Event] = []
    end = 0
    for event in sorted(events, key=lambda event: (event.start, -event.duration)):
        if event.start >= end:
            kept.append(event)
            end = event.start + event.duration
    return kept
