"""A limit to the memory that a piece of work may take on top of what its process has, where the system says how much
that is (Linux)."""

import contextlib
import os
import resource
from collections.abc import Iterator

_sizes: dict[int, int] = {}  # process → its open /proc/self/statm; opening it anew takes three times as long


@contextlib.contextmanager
def limited_memory(more: int) -> Iterator[None]:
    """For a time in which this process gets a MemoryError where its address space would grow by more.

    Args:
        more: bytes.
    """
    size = _size_of_process()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if size is None or resource.RLIM_INFINITY != soft <= size + more:
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (size + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _size_of_process() -> int | None:
    """Bytes of its address space; None where the system does not say."""
    process = os.getpid()
    if process not in _sizes:
        try:
            _sizes[process] = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
    return int(os.pread(_sizes[process], 32, 0).split()[0]) * resource.getpagesize()
