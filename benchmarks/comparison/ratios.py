"""What the figures of a cell come to: ratios, aims, and whether something has got worse than it was."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BASELINES = Path(__file__).with_name("baselines.json")
AIMS = {"sft": 2.5, "packed": 2.5, "reward": 6.0, "dpo": 8.0, "grpo": 3.0, "rloo": 3.0}  # times as fast as the peer
AIM_OF_MEMORY = AIM_OF_START = 0.5  # of the peer's
# By how much more than its baseline a ratio may be. On a machine that others use, time of five pairs of steps moves by
# a tenth; one pair of starts by half, so of starts the median over the cells is looked at, which all start alike.
TOLERANCES = {"time": 0.2, "memory": 0.05, "start": 0.25}
ALL = "all of them"


def ratios(record: Mapping[str, Any]) -> dict[str, float]:
    """Own by peer, so that less is better: of the time of a step the median over pairs of steps; of memory at most; of
    processor seconds from the command to the first step, which other work on the machine moves less than the clock, the
    median over pairs of starts.

    Args:
        record: of a cell, as `measure` returns it.
    """
    own, peer = record["own"], record["peer"]
    starts = [side.get("starts_processor", [side["start_processor"]]) for side in (own, peer)]
    return {
        "time": _median_of_pairs(own["seconds"], peer["seconds"]),
        "memory": own["peak"] / peer["peak"],
        "start": _median_of_pairs(*starts),
    }


def _median_of_pairs(own: Sequence[float], peer: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(own, peer, strict=True))


def losses_apart(record: Mapping[str, Any]) -> float | None:
    """The largest relative difference of the two sides' losses; None where each side trains on what it has sampled, or
    has packed in an order of its own."""
    if record["cell"]["method"] in ("packed", "grpo", "rloo"):
        return None
    pairs = zip(record["own"]["losses"], record["peer"]["losses"], strict=True)
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in pairs)


@dataclass(frozen=True)
class Verdict:
    """A ratio beside what it was.

    Args:
        cell: its name.
        what: time, memory or start.
        baseline, now: own by peer.
        tolerance: by which share it may be more.
    """

    cell: str
    what: str
    baseline: float
    now: float
    tolerance: float

    @property
    def is_worse(self) -> bool:
        return self.now > self.baseline * (1 + self.tolerance)


def baselines_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of measured cells, as results.json holds them."""
    records = results["cells"]
    return {
        "about": results["about"],
        "tolerances": TOLERANCES,
        "cells": {name: {what: round(r, 4) for what, r in ratios(one).items()} for name, one in records.items()},
    }


def verdicts(records: Mapping[str, Mapping[str, Any]], baselines: Mapping[str, Any]) -> list[Verdict]:
    """Every ratio of the measured cells that has a baseline; of starts the median over these cells.

    Args:
        records: of cells, by name.
        baselines: as `baselines_of` returns them.
    """
    own = {name: ratios(record) for name, record in records.items() if name in baselines["cells"]}
    tolerances, kept = baselines["tolerances"], baselines["cells"]
    found = [
        Verdict(name, what, kept[name][what], now[what], tolerances[what])
        for name, now in own.items()
        for what in ("time", "memory")
    ]
    if own:
        before, after = (statistics.median(one[name]["start"] for name in own) for one in (kept, own))
        found.append(Verdict(ALL, "start", before, after, tolerances["start"]))
    return found


def read_baselines() -> dict[str, Any]:
    """Those that are kept in the repository."""
    found: dict[str, Any] = json.loads(BASELINES.read_text(encoding="utf-8"))
    return found
