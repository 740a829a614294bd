"""What this machine has, asked in one way by all."""

import os
import platform
import re
from pathlib import Path
from typing import Any


def num_cores() -> int:
    """Cores that this process may use; where a system cannot tell (macOS), all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_bf16(torch: Any) -> bool:
    """Whether there is a GPU that computes in bfloat16 itself: older ones only imitate it, slower than float32.

    Args:
        torch: the module; whoever asks has imported it.
    """
    return bool(torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False))


def cpu_model() -> str:
    """The name of the processor, of its kind where a system does not tell (macOS)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return named[1] if named else platform.machine()


def machine_memory() -> int:
    """Bytes; in a container, of the container."""
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8").strip()
    except OSError:
        limit = "max"
    return min(physical, int(limit)) if limit.isdecimal() else physical
