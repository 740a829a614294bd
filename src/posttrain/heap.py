"""What a training step on a CPU gives back stays with the process, and is there for the next one.

glibc hands the system what is free at the end of its heap, and of large pieces each. A step frees all that its backward
pass has used; the next one then finds each page anew, zeroed, which takes a twentieth of the processor's time and more.
"""

import ctypes
import os

# glibc's mallopt(3): pieces from this size on are the system's again as soon as they are freed; and how much of what is
# free at the end of the heap is kept.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_PIECE, _MOST_AT_END = 2**27, 2**30


def keep_what_is_freed() -> bool:
    """From now on; returns whether that could be had. Whoever has set one of glibc's own variables is left with it, and
    other C libraries as they are."""
    if any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_PIECE) and mallopt(_TRIM_THRESHOLD, _MOST_AT_END))
