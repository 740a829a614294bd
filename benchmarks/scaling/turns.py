"""Measures the points of a series, whose runs take their steps in turn."""

from __future__ import annotations

import dataclasses
import math
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.in_turn import Run, own_environment
from benchmarks.scaling.points import Point
from posttrain.config import parse_command_line
from posttrain.planning import plan

_WARM_UP = 2  # steps
_MOST_STEPS = 50  # a turn


def _run(point: Point, material: Path) -> Run:
    def command(address: str, scratch: Path) -> list[str]:
        words = [address, point.method, *point.flags(material, scratch / "output")]
        return [sys.executable, "-m", "benchmarks.own_run", *words]

    return Run(command, own_environment(max(1, point.cores // point.processes)))


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
        runs = [stack.enter_context(_run(point, material)) for point in tqdm(points, "starting", leave=False)]
        steps = []
        for run in runs:
            warm = run.take(_WARM_UP)
            steps.append(min(_MOST_STEPS, max(1, math.ceil(seconds / warm[0]["seconds"][-1]))))
        turns: list[list[list[dict[str, Any]]]] = [[] for _ in runs]
        for _ in tqdm(range(rounds), points[0].series, leave=False):
            for index, run in enumerate(runs):
                turns[index].append(run.take(steps[index]))
        started = [run.started for run in runs]
    given = zip(points, started, turns, steps, strict=True)
    return [_summary(point, before, each, number, material) for point, before, each, number in given]


def _summary(
    point: Point, started: list[dict[str, Any]], turns: list[list[dict[str, Any]]], steps: int, material: Path
) -> dict[str, Any]:
    clock = [statistics.mean(turn[0]["seconds"]) for turn in turns]
    processor = [sum(statistics.mean(process["processor"]) for process in turn) for turn in turns]
    planned = plan(*parse_command_line(point.method, point.flags(material, material / "output")))
    return {
        **dataclasses.asdict(point),
        "seconds": [statistics.median(clock), min(clock), max(clock)],
        "processor_seconds": [statistics.median(processor), min(processor), max(processor)],
        "tokens": sum(load["unshared"] for process in turns[-1] for load in process["loads"]) / steps,
        "peak": max(process["peak"] for process in turns[-1]),
        "before": max(process["before"] for process in started),
        "planned_peak": planned.peak,
        "planned_seconds": planned.time.step,
    }
