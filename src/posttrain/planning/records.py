"""Plans that are kept, and how they came out: the calibration of planning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.cache import cache_root
from posttrain.config import CommonConfig
from posttrain.disk import write_text
from posttrain.planned import plan_file, read_plan
from posttrain.planning.report import MIB, Plan


def keep(plan: Plan, config: CommonConfig) -> Path:
    """Write a plan where the run will find it; outcomes of earlier plans of the same run stay.

    Args:
        plan: of the run.
        config: of the run.
    """
    file = plan_file(config, plan.steps.processes)
    before = read_plan(file) or {}
    predicted = {
        "peak_memory_mib": plan.peak / MIB,
        "seconds_a_step": plan.time.step,
        "seconds_in_all": plan.time.total,
        "probed": plan.probe is not None,
        "device": plan.decided["device"],
    }
    about = {"predicted": predicted, "plan": plan.to_json(), "outcomes": before.get("outcomes", [])}
    write_text(file, json.dumps(about, indent=1) + "\n")
    return file


def outcomes(cache_dir: str | None) -> list[dict[str, Any]]:
    """All runs that were planned and have ended, the oldest first: method, model, data, predicted and actual.

    Args:
        cache_dir: the flag; None: where the cache is.
    """
    found = []
    for file in (cache_root(cache_dir) / "plans").glob("*.json"):
        planned = read_plan(file)
        for outcome in (planned or {}).get("outcomes", []):
            assert planned is not None
            about = planned["plan"]
            named = {"method": about["method"], "model": about["model"], "data": about["rows"]["source"]}
            found.append({**named, **outcome})
    return sorted(found, key=lambda one: str(one["ended"]))


def errors(found: list[dict[str, Any]]) -> dict[str, float]:
    """Median and largest of the sizes of errors, of memory and time; shares.

    Args:
        found: from `outcomes`.
    """
    told: dict[str, float] = {}
    for name in ("peak_memory", "seconds_a_step"):
        sizes = [abs(one[f"{name}_error"]) for one in found if f"{name}_error" in one]
        if sizes:
            told |= {f"{name}_median": float(np.median(sizes)), f"{name}_largest": max(sizes)}
    return told
