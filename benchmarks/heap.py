"""What it gains that memory which a step gives back stays with the process (src/posttrain/heap.py): training steps with
glibc's own thresholds and with posttrain's, in blocks that take turns, in one process.

Seconds are those of the processor. The first step of each block does not count: it finds what the other side has left.
"""

from __future__ import annotations

import argparse
import ctypes
import resource
import statistics
import time
from pathlib import Path
from typing import Any

from profile_step import PRECISIONS, ROWS, train
from transformers import TrainerCallback

from posttrain import heap

BLOCK = 4
# What glibc's own come to: the first grows with what is freed, up to 32 MiB, the second is twice that.
THRESHOLDS = {"glibc's": (2**25, 2**26), "posttrain's": (heap._LARGEST_PIECE, heap._MOST_AT_END)}


class Steps(TrainerCallback):
    """Switches every BLOCK steps, and counts all but the first one of each block, from the third block on."""

    def __init__(self) -> None:
        self.counted: dict[str, list[tuple[float, float, float]]] = {name: [] for name in THRESHOLDS}
        self._before: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before a step."""
        if state.global_step % BLOCK == 0:
            mallopt = ctypes.CDLL(None).mallopt
            piece, end = list(THRESHOLDS.values())[state.global_step // BLOCK % 2]
            assert mallopt(heap._MMAP_THRESHOLD, piece) and mallopt(heap._TRIM_THRESHOLD, end)
        self._before = now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After it."""
        block, place = divmod(state.global_step - 1, BLOCK)
        if place and block >= 2:
            used = tuple(after - before for after, before in zip(now(), self._before, strict=True))
            self.counted[list(THRESHOLDS)[block % 2]].append(used)  # type: ignore[arg-type]


def now() -> tuple[float, float, float]:
    """Seconds of the processor, of them the system's, and page faults so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return time.process_time(), usage.ru_stime, usage.ru_minflt


def main() -> None:
    """Run, and print a line a side."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--material", type=Path, required=True, help="folder that material.py has written")
    parser.add_argument("--method", choices=list(ROWS), default="sft")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="fp32")
    parser.add_argument("--blocks", type=int, default=18, help="the first two do not count")
    args = parser.parse_args()
    if not args.material.is_dir():
        parser.error(f"--material {args.material} is no folder; benchmarks/material.py writes one")
    steps = Steps()
    train(steps, args.method, args.precision, False, args.material, args.blocks * BLOCK)
    for name, counted in steps.counted.items():
        seconds, system, faults = (statistics.median(column) for column in zip(*counted, strict=True))
        print(f"{args.method}, {args.precision}, {name}: {seconds:.3f} s, system {system:.3f} s, faults {faults:,.0f}")


if __name__ == "__main__":
    main()
