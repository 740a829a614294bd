"""Every stage of the pipeline for a few steps, in a folder that is thrown away: does all of it still run?

    python scripts/smoke.py

The stages are those of dvc.yaml, in its order, all in this process: to import torch and transformers takes longer than
most of them. The parameters are those of params.yaml but for OVERRIDES. Ends with exit code 1 where a stage failed.
"""

import contextlib
import io
import os
import runpy
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
STEPS = {"max_steps": 3, "warmup_steps": 0, "logging_steps": 1, "eval_steps": 3}
SAMPLING = {"max_completion_length": 16, "per_device_train_batch_size": 16, "per_device_eval_batch_size": 16}
OVERRIDES: dict[str, dict[str, Any]] = {
    "prepare": {"num_sft": 300, "num_preference": 100, "num_prompts": 50, "num_validation": 16, "num_test": 32},
    "check_data": {},
    "sft": STEPS,
    "reward": STEPS,
    "dpo": STEPS,
    "grpo": STEPS | SAMPLING,
    "rloo": STEPS | SAMPLING,
    "evaluate": {"max_new_tokens": 16, "num_sampled_prompts": 8, "num_samples": 2, "pass_at": [1, 2]},
    "samples": {},
    # A few steps make no model that is good for anything.
    "check_models": {"min_reward_accuracy": None, "max_calibration_error": None, "max_brier_score": None}
    | {"min_answer_accuracy": None, "max_hacking_loss": None, "max_pass_loss": None},
}


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="posttrain-smoke-"))
    failed = smoke(folder)
    if failed:
        print(f"\n{failed} failed; what was written is in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def smoke(folder: Path) -> int:
    """Run the stages in a folder, a line of the table each; returns how many failed."""
    os.environ["POSTTRAIN_CACHE"] = str(folder / "cache")
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    merged = {name: section | OVERRIDES.get(name, {}) for name, section in params.items()}
    (folder / "params.yaml").write_text(yaml.safe_dump(merged), encoding="utf-8")
    started, failed = time.perf_counter(), 0
    print(f"{'stage':<14}{'seconds':>8}")
    with contextlib.chdir(folder):
        for name, words in stages():
            before = time.perf_counter()
            message = run_stage(words)
            failed += bool(message)
            print(f"{name:<14}{time.perf_counter() - before:>8.1f}  {message or 'OK'}", flush=True)
    print(f"{'all':<14}{time.perf_counter() - started:>8.1f}")
    return failed


def stages() -> Iterator[tuple[str, list[str]]]:
    """Name and command of each stage, script first; of one with a matrix, of each of its items."""
    pipeline: Mapping[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for name, stage in pipeline.items():
        words = stage["cmd"].split()[1:]
        for item in stage.get("matrix", {"model": [""]})["model"]:
            yield f"{name} {item}".strip(), [item if word == "${item.model}" else word for word in words]


def run_stage(words: list[str]) -> str:
    """Run a stage's script in this process; returns what went wrong, or nothing."""
    output = io.StringIO()
    sys.argv = [*words, "--params", "params.yaml"]
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code = runpy.run_path(str(ROOT / words[0]))["main"]()
    except Exception as error:
        Path(f"{Path(words[0]).stem}.log").write_text(output.getvalue() + traceback.format_exc(), encoding="utf-8")
        return f"failed: {str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"
    return f"failed: exit code {code}" if code else ""


if __name__ == "__main__":
    sys.exit(main())
