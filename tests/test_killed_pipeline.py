"""`dvc repro grpo`, killed with all that it started and run again: the stage goes on from its checkpoint, and dvc.lock
is that of an undisturbed run. Another parameter is another run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from tiny import REWARD, write_base, write_prompts

from posttrain.config.yaml_files import FastLoader

ROOT = Path(__file__).resolve().parent.parent
# Of the repository's own section: all but what makes it large.
TINY = {
    "num_generations": 4,
    "max_completion_length": 6,
    "per_device_train_batch_size": 8,
    "steps_per_generation": 3,
    "max_steps": 40,
    "logging_steps": 3,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 2,
    "eval_strategy": "no",
    "report_to": "none",
    "learning_rate": 1e-3,
    "reward_funcs": ["rewards.py:share_of_one"],
    "reward_workers": 0,
}
GOES_ON = "Going on from"


def write_pipeline(folder: Path) -> None:
    """The repository with its stage `grpo` alone, for a tiny model."""
    for name in ("src", "scripts", "accelerate_configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    stages = yaml.load((ROOT / "dvc.yaml").read_text(encoding="utf-8"), FastLoader)["stages"]
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"grpo": stages["grpo"]}}), encoding="utf-8")
    set_parameters(folder)
    (folder / "rewards.py").write_text(REWARD, encoding="utf-8")
    (folder / "models").mkdir()
    write_base(folder / "models/sft")
    (folder / "data/embedded/prompts").mkdir(parents=True)
    (folder / "results/checks").mkdir(parents=True)
    (folder / "results/checks/data_passed").write_text("No check of the data failed.\n", encoding="utf-8")
    for split in ("train", "validation"):
        write_prompts(folder / f"data/embedded/prompts/{split}.jsonl")
    subprocess.run([*DVC, "init", "--no-scm", "-q"], cwd=folder, check=True, env=environment(folder))


def set_parameters(folder: Path, **changed: Any) -> None:
    own = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"), FastLoader)["grpo"]
    (folder / "params.yaml").write_text(yaml.safe_dump({"grpo": own | TINY | changed}), encoding="utf-8")


DVC = [sys.executable, "-m", "dvc"]


def environment(folder: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONPATH": str(folder / "src"), "DVC_NO_ANALYTICS": "1"}


def repro(folder: Path, kill_after: str | None = None) -> str:
    """`dvc repro grpo`; with kill_after killed as soon as there is such a folder. Returns what it says."""
    log = folder.with_suffix(".log")
    with open(log, "w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [*DVC, "repro", "grpo"],
            cwd=folder,
            env=environment(folder),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        while process.poll() is None:
            if kill_after is not None and any(folder.glob(kill_after)):
                os.killpg(process.pid, signal.SIGKILL)
                break
            time.sleep(0.005)
        code = process.wait()
    text = log.read_text(encoding="utf-8")
    assert code == (0 if kill_after is None else -signal.SIGKILL), text
    return text


def test_a_killed_stage_goes_on(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    write_pipeline(whole)
    shutil.copytree(whole, killed)
    assert GOES_ON not in repro(whole)

    set_parameters(killed, learning_rate=2e-3)
    repro(killed, kill_after="work/grpo/*/checkpoint-4")
    set_parameters(killed)
    # Another parameter: what the other run has left is not taken up, nor touched.
    assert GOES_ON not in repro(killed, kill_after="work/grpo/*/checkpoint-8")
    assert not (killed / "models/grpo").exists()
    assert len(list((killed / "work/grpo").glob("*/run.json"))) == 2
    assert GOES_ON in repro(killed)
    assert lock_of(killed) == lock_of(whole)
    assert metrics_of(killed) == metrics_of(whole)


def lock_of(folder: Path) -> Any:
    """What dvc.lock says of the stage; of what holds times, no hash."""
    stage = yaml.load((folder / "dvc.lock").read_text(encoding="utf-8"), FastLoader)["stages"]["grpo"]
    paths = [out["path"] for out in stage["outs"]]
    of_the_hour = ["metrics/grpo.json", "models/grpo.provenance.json"]
    assert sorted(paths) == sorted([*of_the_hour, "models/grpo", "plots/grpo.csv"])
    stage["outs"] = [out for out in stage["outs"] if out["path"] not in of_the_hour]
    return stage


def metrics_of(folder: Path) -> dict[str, float]:
    metrics = json.loads((folder / "metrics/grpo.json").read_text(encoding="utf-8"))
    timings = ("per_second", "runtime", "step_time", "peak_memory")
    assert metrics["grad_norm"] > 0
    return {name: value for name, value in metrics.items() if not any(word in name for word in timings)}
