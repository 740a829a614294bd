"""What this machine has, asked in one way by all."""

import os
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
