"""Where the time of a step goes, by torch's profiler: seconds of the main thread, by kind of operation."""

from __future__ import annotations

import time

from torch.profiler import ProfilerActivity, profile

# By the beginning of an operation's name, the first that fits.
KINDS = {
    "attention": ("aten::_scaled_dot_product", "aten::scaled_dot_product", "aten::_flash_attention"),
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear", "mkldnn::", "aten::mkldnn"),
    "optimizer": ("aten::_fused_adam", "aten::_foreach", "Optimizer"),
    "copies": (
        "aten::copy_",
        "aten::_to_copy",
        "aten::cat",
        "aten::clone",
        "aten::index",
        "aten::gather",
        "aten::stack",
    ),
    "element by element": ("aten::",),
}
_NOTHING = (
    "aten::view",
    "aten::as_strided",
    "aten::transpose",
    "aten::slice",
    "aten::expand",
    "aten::reshape",
    "aten::t",
)


class StepProfile:
    """Profiles from when it is made until `seconds` is asked for."""

    def __init__(self) -> None:
        self._profiler = profile(activities=[ProfilerActivity.CPU])
        self._profiler.start()
        self._began = time.perf_counter()

    def seconds(self) -> dict[str, float]:
        """By kind; "rest" is what is in none of the operations: Python, transformers' loop, the engine of autograd."""
        whole = time.perf_counter() - self._began
        self._profiler.stop()
        found = dict.fromkeys(KINDS, 0.0)
        for event in self._profiler.key_averages():
            kind = kind_of(event.key)
            if kind is not None:
                found[kind] += event.self_cpu_time_total / 1e6
        return found | {"rest": max(0.0, whole - sum(found.values()))}


def kind_of(name: str) -> str | None:
    """The kind of an operation; None: it computes nothing, or only calls others.

    Args:
        name: as the profiler has it.
    """
    if name in _NOTHING:
        return None
    kinds = (kind for kind, beginnings in KINDS.items() if name.startswith(beginnings))
    return next(kinds, None)
