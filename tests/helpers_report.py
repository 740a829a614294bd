"""A pipeline's folder as its stages leave it, small, and a browser to look at what is made of it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PIPELINE = """
stages:
  prepare:
    cmd: python scripts/prepare.py
    params: [prepare]
    deps: [scripts/prepare.py]
    outs: [data/sft, models/base]
  sft:
    cmd: python scripts/sft.py
    params: [sft]
    deps: ["${sft.dataset_name}", models/base, scripts/sft.py]
    outs: [models/sft]
    metrics: [{metrics/sft.json: {cache: false}}]
    plots: [{plots/sft.csv: {cache: false}}]
  rloo:
    cmd: python scripts/rloo.py
    params: [rloo]
    deps: [models/sft]
    outs: [models/rloo]
    metrics: [{metrics/rloo.json: {cache: false}}]
  evaluate:
    matrix: {model: [sft, rloo]}
    cmd: python scripts/evaluate.py ${item.model}
    deps: ["models/${item.model}", models/sft]
    outs: ["results/evaluate_${item.model}.jsonl"]
  publish:
    cmd: python scripts/publish.py
    deps: [results/evaluate_rloo.jsonl]
    outs: [results/published]
"""


def write_pipeline(folder: Path, beta: float = 0.02, evil: str = "") -> Path:
    """Everything that the report reads of a pipeline with two policies, of six problems each.

    Args:
        folder: to write to.
        beta: of rloo, which decides what its stages leave.
        evil: text that stands wherever text of data, models and rewards may stand.
    """
    for name in ("metrics", "plots", "results", "models"):
        (folder / name).mkdir(parents=True)
    params = {"prepare": {"seed": 0}, "sft": {"dataset_name": "data/sft"}, "rloo": {"beta": beta}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params | {"evaluate": {"reference": "sft"}}, sort_keys=False))
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": _lock(beta)}))
    counts = {"data/rows_read": 60, "data/rows": 58, "data/rows_dropped_no_target": 2, "data/rows_truncated": 3}
    counts |= {"data/tokens": 900, "data/tokens_truncated": 41}
    clean = {"data/rows_read": 40, "data/rows": 40, "data/rows_dropped_long_prompt": 0, "data/rows_truncated": 0}
    clean |= {"data/tokens": 400, "data/tokens_truncated": 0}
    _metrics(folder, "sft", {"train_loss": 0.49, "eval_loss": 0.0943, "train_runtime": 103.4, **counts})
    _metrics(folder, "rloo", {"train_loss": -1e-9, "reward": 6.4 + beta, f"rewards/own{evil}/mean": 1.0, **clean})
    shares = {"exact_match": 0.5, "exact_match_low": 0.18, "exact_match_high": 0.81, "format_rate": 5 / 6}
    _metrics(folder, "evaluate_sft", {**shares, "reward_score": -1.25, "num_prompts": 6})
    divergence = {"kl_to_sft": 2.5 - beta, "kl_to_sft_low": 2.2, "kl_to_sft_high": 2.9, "kl_to_sft_per_token": 0.07}
    _metrics(folder, "evaluate_rloo", {**shares, "exact_match": 2 / 3 - beta, "reward_score": 4.5, **divergence})
    (folder / "plots/sft.csv").write_text("step,loss,eval_loss,entropy\n1,4.25,,1.5\n2,0.5,0.75,1.5\n")
    (folder / "plots/rloo.csv").write_text(f"step,loss,kl,reward\n5,0.0,0.001,2.5\n10,0.0,0.06,{6.4 + beta}\n")
    _answers(folder, "sft", [True, True, True, False, False, False], evil)
    _answers(folder, "rloo", [True, beta < 0.1, False, True, True, False], evil)
    told = {"git": {"commit": "0f1e2d3", "dirty": False}, "seeds": {"seed": 0}, "packages": {"torch": "2.13.0"}}
    (folder / "models/sft.provenance.json").write_text(json.dumps(told))
    return folder


def _lock(beta: float) -> dict[str, Any]:
    def stage(name: str, deps: list[str], outs: list[str], made: object) -> dict[str, Any]:
        written = [{"path": path, "md5": f"{made}", "size": 2 * 2**20} for path in outs]
        return {"cmd": f"python scripts/{name}.py", "deps": [{"path": path} for path in deps], "outs": written}

    return {
        "prepare": stage("prepare", ["scripts/prepare.py"], ["data/sft", "models/base"], 0),
        "sft": stage("sft", ["data/sft", "models/base"], ["models/sft"], 0),
        "rloo": stage("rloo", ["models/sft"], ["models/rloo"], beta),
        "evaluate@sft": stage("evaluate", ["models/sft"], ["results/evaluate_sft.jsonl"], 0),
        "evaluate@rloo": stage("evaluate", ["models/rloo", "models/sft"], ["results/evaluate_rloo.jsonl"], beta),
    }


def _metrics(folder: Path, name: str, values: dict[str, float]) -> None:
    (folder / f"metrics/{name}.json").write_text(json.dumps(values))


def _answers(folder: Path, model: str, right: list[bool], evil: str) -> None:
    rows = []
    for number, correct in enumerate(right):
        ended = (model, number) != ("sft", 5)
        text = f"{number} + 1 = {number + 1}{evil}\n#### {number + 1 if correct else 99}" if ended else "and so on"
        about = {"correct": correct, "formatted": ended, "ended": ended, "num_tokens": 12 + number if ended else 80}
        asked = [{"role": "user", "content": f"What is {number} + 1?{evil}"}]
        rows.append(
            {"id": f"prompts/{number:04x}", "prompt": asked, "reference": f"#### {number + 1}", "completion": text}
            | about
            | {"reward_score": number - 2.5}
        )
    pair = {"id": "preference/0", "prompt": [], "margin_logprob": 1.0}
    text = "".join(json.dumps(row) + "\n" for row in [*rows, pair])
    (folder / f"results/evaluate_{model}.jsonl").write_text(text)


def browser_path() -> str:
    """A Chromium of this machine; without one the test is skipped, but not in CI."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        message = f"there is no browser: none of {', '.join(BROWSERS)} (Debian: apt-get install chromium)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found
