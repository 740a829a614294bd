"""Losses, gradient norms and metrics that TRL gives on fixed models and rows, through the command line's own path.

The kit is the folder that POSTTRAIN_PARITY names, or ../shared/parity beside the repository; without one, all skip.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from posttrain.cli import main

KIT = Path(os.environ.get("POSTTRAIN_PARITY") or Path(__file__).parents[2].parent / "shared" / "parity")

pytestmark = pytest.mark.skipif(not KIT.is_dir(), reason="no parity kit: POSTTRAIN_PARITY names none")

# Means of small numbers of events (accuracies) and sums of differences need room of their own; a metric here is checked
# to this absolute error, all others to 1e-3 relative.
ABSOLUTE = {"rewards/chosen": 2e-3, "rewards/rejected": 2e-3, "rewards/margins": 2e-3, "mean_token_accuracy": 1e-6}

# Losses that may be 2e-3 off: in exponentials of sums over hundreds of tokens the last bits of a log-prob weigh more;
# sorted differences meet others where the last bits, which differ from processor to processor, exchange two.
SENSITIVE = {"f-divergence forward_kl", "f-divergence alpha", "loss aot", "loss aot_unpaired"}

# The peer takes the mean of the micro-batches' means here, where this project divides sums once.
MEAN_OF_MEANS = {("messages, accumulation 4x4", "mean_token_accuracy"), ("messages, accumulation 4x4", "entropy")}


def cases(method: str) -> list[Any]:
    path = KIT / f"{method}.json"
    if not path.is_file():
        return []
    kit = json.loads(path.read_text())
    return [pytest.param(kit["common_flags"], run, id=run["title"]) for run in kit["runs"]]


def as_arguments(flags: dict[str, Any]) -> list[str]:
    words = []
    for name, value in flags.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *(str(v).lower() if isinstance(v, bool) else str(v) for v in values)]
    return words


def run_case(method: str, common: dict[str, Any], run: dict[str, Any], folder: Path) -> list[dict[str, float]]:
    model = KIT / ("reward_model" if method == "reward" else "model")
    flags = {**common, **run["flags"], "model_name_or_path": model, "dataset_name": KIT / run["data"]}
    if run.get("reference") == "ref_model":
        flags["ref_model_name_or_path"] = KIT / "ref_model"
    words = as_arguments({**flags, "output_dir": folder / "out", "cache_dir": folder / "cache"})
    assert main([method, *words]) == 0
    state = json.loads((folder / "out" / "trainer_state.json").read_text())
    return [line for line in state["log_history"] if "loss" in line]


def compare(run: dict[str, Any], steps: list[dict[str, float]]) -> None:
    assert len(steps) == len(run["steps"])
    for number, (actual, expected) in enumerate(zip(steps, run["steps"], strict=True)):
        for name, value in expected.items():
            if (run["title"], name) in MEAN_OF_MEANS:
                continue
            relative = {"loss": 1e-4, "grad_norm": 1e-3 if number == 0 else 1e-2}.get(name, 1e-3)
            if name == "loss" and run["title"] in SENSITIVE:
                relative = 2e-3
            absolute = ABSOLUTE.get(name, 0.0)
            message = f"step {number + 1}, {name}: {actual[name]} instead of {value}"
            assert math.isclose(actual[name], value, rel_tol=relative, abs_tol=absolute), message


@pytest.mark.parametrize(("common", "run"), cases("sft"))
def test_sft(common: dict[str, Any], run: dict[str, Any], tmp_path: Path) -> None:
    compare(run, run_case("sft", common, run, tmp_path))


@pytest.mark.parametrize(("common", "run"), cases("dpo"))
def test_dpo(common: dict[str, Any], run: dict[str, Any], tmp_path: Path) -> None:
    compare(run, run_case("dpo", common, run, tmp_path))


@pytest.mark.parametrize(("common", "run"), cases("reward"))
def test_reward(common: dict[str, Any], run: dict[str, Any], tmp_path: Path) -> None:
    compare(run, run_case("reward", common, run, tmp_path))
