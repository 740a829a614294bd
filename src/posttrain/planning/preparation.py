"""What it takes to prepare rows that are many and not prepared yet: time, memory and disk, by a sample of them."""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.data.parallel import MOST
from posttrain.machine import num_cores

# Measured with two million rows of SFT (benchmarks/README.md).
_PROCESS, _WORKER = 450 * 2**20, 110 * 2**20  # bytes of the process, torch and the tokenizer included, and of a worker
_OF_DOCUMENT = 80  # bytes of memory, where rows are shuffled or packed
_ALONE = 0.1  # of the work is reading rows and writing tokens, which one process does


@dataclass(frozen=True)
class Preparation:
    """What rows that are not prepared yet take before training, once.

    Args:
        seconds: of time.
        processes: that tokenise.
        memory: bytes of all processes together.
        disk: bytes at most, while it goes on.
    """

    seconds: float
    processes: int
    memory: float
    disk: float


def preparation(
    asked: int | None, rows: int, seconds: float, size: float, in_order: float | None, looked_at: int
) -> Preparation:
    """Of all rows.

    Args:
        asked: processes, by the user.
        rows: that there are.
        seconds: of the processors' time, for those that were looked at.
        size: bytes that those take on disk.
        in_order: bytes that they take before they are shuffled or packed; None where they are not.
        looked_at: rows.
    """
    processes, factor = asked or min(num_cores(), MOST), rows / looked_at
    work = seconds * factor / min(processes, num_cores())
    return Preparation(
        seconds=max(work, seconds * factor * _ALONE),
        processes=processes,
        memory=_PROCESS
        + _WORKER * (processes if processes > 1 else 0)
        + (0 if in_order is None else _OF_DOCUMENT * rows),
        disk=(size + (in_order or 0.0)) * factor,
    )
