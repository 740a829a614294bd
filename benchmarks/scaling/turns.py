"""Measures runs in turn: each is a process of its own that waits after a whole step while the others take theirs."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.scaling.points import Point
from posttrain.config import parse_command_line
from posttrain.planning import plan

ROOT = Path(__file__).resolve().parents[2]
_WARM_UP = 2  # steps
_MOST_STEPS = 50  # a turn


class Run:
    """A run that waits for its turn. Entered as a context, it is started, and ended without saving anything.

    Args:
        point: to be measured.
        material: folder of models and rows.
    """

    def __init__(self, point: Point, material: Path) -> None:
        self.point, self._material = point, material

    def __enter__(self) -> Run:
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="posttrain-scaling-")))
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            address = str(scratch / "turns")
            listener.bind(address)
            listener.listen()
            listener.settimeout(1)
            log = stack.enter_context(open(scratch / "log", "w+", encoding="utf-8"))
            words = [address, self.point.method, *self.point.flags(self._material, scratch / "output")]
            threads = self.point.cores // self.point.processes
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.scaling.timed_run", *words],
                env=os.environ | {"OMP_NUM_THREADS": str(max(1, threads)), "TOKENIZERS_PARALLELISM": "false"},
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            stack.callback(self._end)
            while True:
                try:
                    connection = stack.enter_context(listener.accept()[0])
                    break
                except TimeoutError:
                    if self._process.poll() is not None:
                        log.seek(0)
                        sys.exit(f"the run {self.point} ended:\n{log.read()[-4000:]}")
            self._channel = stack.enter_context(connection.makefile("rw", encoding="utf-8"))
            self._channel.readline()  # training is about to begin
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *details: object) -> None:
        self._stack.close()

    def _end(self) -> None:
        self._process.kill()  # its launched processes end with it
        self._process.wait()

    def take(self, steps: int) -> list[dict[str, Any]]:
        """Takes steps, and returns what each process says of them."""
        self._channel.write(f"{steps}\n")
        self._channel.flush()
        reports: list[dict[str, Any]] = json.loads(self._channel.readline())
        return reports


def measure(points: list[Point], material: Path, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """What steps of each point take, measured in turn.

    Args:
        points: of a series.
        material: folder of their models and rows.
        rounds: turns of each.
        seconds: that a turn should last at least.

    Returns:
        For each point: its fields; seconds and processor seconds a step (median of the turns' means, smallest and
        largest), the latter of all processes; tokens a step, a shared prompt counted for each of its sequences; bytes
        at most of the fullest process; what a plan says of them.
    """
    with ExitStack() as stack:
        runs = [stack.enter_context(Run(point, material)) for point in tqdm(points, "starting", leave=False)]
        steps = []
        for run in runs:
            warm = run.take(_WARM_UP)
            steps.append(min(_MOST_STEPS, max(1, math.ceil(seconds / warm[0]["seconds"][-1]))))
        turns: list[list[list[dict[str, Any]]]] = [[] for _ in runs]
        for _ in tqdm(range(rounds), points[0].series, leave=False):
            for index, run in enumerate(runs):
                turns[index].append(run.take(steps[index]))
    return [_summary(point, each, number, material) for point, each, number in zip(points, turns, steps, strict=True)]


def _summary(point: Point, turns: list[list[dict[str, Any]]], steps: int, material: Path) -> dict[str, Any]:
    clock = [statistics.mean(turn[0]["seconds"]) for turn in turns]
    processor = [sum(statistics.mean(process["processor"]) for process in turn) for turn in turns]
    planned = plan(*parse_command_line(point.method, point.flags(material, material / "output")))
    return {
        **dataclasses.asdict(point),
        "seconds": [statistics.median(clock), min(clock), max(clock)],
        "processor_seconds": [statistics.median(processor), min(processor), max(processor)],
        "tokens": turns[-1][0]["tokens"] / steps,
        "peak": max(process["peak"] for process in turns[-1]),
        "before": max(process["before"] for process in turns[-1]),
        "planned_peak": planned.peak,
        "planned_seconds": planned.time.step,
    }
