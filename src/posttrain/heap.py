"""What a training step on a CPU gives back stays with the process, and is there for the next one.

glibc hands the system what is free at the end of its heap, and of large pieces each. A step frees all that its backward
pass has used; the next one then finds each page anew, zeroed. In grpo that is up to a tenth of the processor's time
(benchmarks/heap.py).
"""

import ctypes
import os

# glibc's mallopt(3): pieces from this size on are the system's again as soon as they are freed; and how much of what is
# free at the end of the heap is kept.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
_LARGEST_PIECE, _MOST_AT_END = 2**27, 2**30
# By which its user says such things; other variables of glibc's are about something else.
_VARIABLES = {
    "GLIBC_TUNABLES",
    *(f"MALLOC_{name}_" for name in ("MMAP_THRESHOLD", "TRIM_THRESHOLD", "TOP_PAD", "MMAP_MAX")),
}


def keep_what_is_freed() -> bool:
    """From now on; returns whether that could be had. Whoever has told glibc otherwise is left with that, and other C
    libraries as they are."""
    if _VARIABLES & os.environ.keys():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_PIECE) and mallopt(_TRIM_THRESHOLD, _MOST_AT_END))
