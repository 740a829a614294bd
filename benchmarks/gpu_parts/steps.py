"""Whole training steps: `posttrain METHOD` as it is, in this process, with a clock in it; and the peer beside it."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import trainer as trainer_module

from posttrain import cli

from .clock import Clock, Measured
from .profiling import summary
from .settings import Setting, peaks_of, step_operations

HERE = Path(__file__).resolve().parent
REWARD = HERE.parent / "bench_reward.py"

# Flags of the ways to run SFT. Mixed precision (weights in float32) but where it says bfloat16.
SFT_WAYS: dict[str, list[str]] = {
    "sft": ["--no_gradient_checkpointing"],
    "sft, one row": ["--no_gradient_checkpointing", "--per_device_train_batch_size", "1"],
    "sft, compiled": ["--no_gradient_checkpointing", "--torch_compile"],
    "sft, recomputed": ["--gradient_checkpointing"],
    "sft, bfloat16 weights": ["--no_gradient_checkpointing", "--dtype", "bfloat16"],
    "sft, lora": ["--no_gradient_checkpointing", "--use_peft", "--lora_r", "16"],
}


def flags_of(method: str, setting: Setting, material: Path, output: Path, more: list[str]) -> list[str]:
    """The words after `posttrain METHOD`; but for SFT the peer takes them, too.

    Args:
        method: of posttrain.
        setting: sizes.
        material: folder that has been written.
        output: folder of the run.
        more: further words, which win over those here.
    """
    rows = {"sft": "documents", "dpo": "pairs", "reward": "pairs"}.get(method, "prompts")
    given: dict[str, object] = {
        "model_name_or_path": material / "model",
        "dataset_name": material / f"{rows}.jsonl",
        "output_dir": output,
        "max_steps": setting.skip + setting.steps + 2,
        "learning_rate": "1e-6",
        "lr_scheduler_type": "constant",
        "dtype": "float32",
        "logging_steps": 10**6,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": "true",
    }
    given |= {"bf16": "true"} if torch.cuda.is_available() else {"bf16": "false", "use_cpu": "true"}
    if method == "sft":
        given |= {"max_length": setting.row, "packing": "true", "per_device_train_batch_size": setting.rows}
    elif method in ("dpo", "reward"):
        given |= {"max_length": 2 * setting.longest, "per_device_train_batch_size": setting.pairs}
        given |= {"gradient_checkpointing": "false", "train_sampling_strategy": "sequential"}
    else:
        given |= {
            "per_device_train_batch_size": setting.step_prompts * setting.group,
            "num_generations": setting.group,
            "max_completion_length": setting.step_new_tokens,
            "gradient_checkpointing": "false",
        }
    named = {word.removeprefix("--").removeprefix("no_") for word in more if word.startswith("--")}
    words = [text for name, value in given.items() if name not in named for text in (f"--{name}", str(value))]
    return [*words, *more]


def own(
    method: str, setting: Setting, material: Path, seconds: float, more: list[str] | None = None, profile: bool = False
) -> dict[str, Any]:
    """What the steps of a run take, and with `profile` where their time goes."""
    clock = Clock(setting.skip, setting.steps, seconds, profile)
    words = list(more or [])
    if method in ("grpo", "rloo"):
        words += ["--reward_funcs", f"{REWARD}:share_of_thirds", "--reward_workers", "0"]
    with tempfile.TemporaryDirectory(dir=material.parent) as scratch:
        words += ["--cache_dir", str(material / "cache")]
        words = flags_of(method, setting, material, Path(scratch) / "output", words)
        trainer_module.DEFAULT_CALLBACKS.append(clock)
        code: int | None = None
        try:
            code = cli.main([method, *words])
        except Measured:  # with which the run goes, and all that it held
            pass
        finally:
            trainer_module.DEFAULT_CALLBACKS.remove(clock)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    if not clock.record:
        raise RuntimeError(f"posttrain {method} ended with code {code}, {clock.record or 'without a timed step'}")
    found = clock.record
    if "tokens a step" in found:
        found["tokens a second"] = found["tokens a step"] / found["seconds a step"]
    if clock.trace is not None:
        found["profile"] = summary(clock.trace)
    return found


def sft(way: str, setting: Setting, material: Path, seconds: float) -> dict[str, Any]:
    """A run of SFT, with the share of the peak that it reaches."""
    words = SFT_WAYS[way]
    if "--torch_compile" in words and not torch.cuda.is_available():  # C++ would take a minute to compile
        words = [*words, "--torch_compile_backend", "eager"]
    found = own("sft", setting, material, seconds, words, profile=way in ("sft", "sft, compiled"))
    rows = [json.loads(line)["input_ids"] for line in (material / "documents.jsonl").read_text().splitlines()]
    lengths = [len(row) for row in rows]
    # Which documents a step held is not asked: they are drawn alike, and all steps take the operations of the mean.
    frozen = "--use_peft" in SFT_WAYS[way]
    operations = step_operations(setting.num_parameters, lengths, setting.num_layers, setting.hidden_size, frozen)
    a_token = operations / sum(lengths)
    found["operations a token"] = a_token
    found["FLOP/s"] = a_token * found["tokens a second"]
    peaks = peaks_of(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    if peaks is not None:
        found["MFU"] = found["FLOP/s"] / peaks[0]
    return found


def peer(method: str, setting: Setting, material: Path, seconds: float, python: Path) -> dict[str, Any]:
    """The same steps of the peer."""
    with tempfile.TemporaryDirectory(dir=material.parent) as scratch:
        record = Path(scratch) / "record.json"
        words = []
        if method in ("grpo", "rloo"):
            words += ["--reward_funcs", "bench_reward.share_of_thirds"]
        words = flags_of(method, setting, material, Path(scratch) / "output", words)
        rows = Path(scratch) / "rows"  # the peer reads folders
        rows.mkdir()
        place = words.index("--dataset_name") + 1
        (rows / "train.jsonl").symlink_to(words[place])
        words[place] = str(rows)
        numbers = [str(setting.skip), str(setting.steps), str(seconds)]
        command = [str(python), str(HERE / "peer.py"), method, str(record), *numbers, *words]
        environment = os.environ | {"PYTHONPATH": str(HERE.parent), "HF_HUB_OFFLINE": "1", "HF_HOME": scratch}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=scratch, timeout=seconds)
        if not record.exists():
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
        return dict(json.loads(record.read_text(encoding="utf-8")))


def beside(method: str, setting: Setting, material: Path, seconds: float, python: Path | None) -> dict[str, Any]:
    """The steps of a method, and those of the peer where there is one; half of the time for each."""
    found: dict[str, Any] = {"posttrain": own(method, setting, material, seconds / (2 if python else 1), profile=True)}
    if python is not None:
        found["trl"] = peer(method, setting, material, seconds / 2, python)
        found["times as fast"] = found["trl"]["seconds a step"] / found["posttrain"]["seconds a step"]
        if method in ("dpo", "reward"):  # the others train on what they draw
            pairs = zip(found["posttrain"]["losses"], found["trl"]["losses"], strict=True)
            found["losses differ by"] = max(abs(a - b) / abs(b) for a, b in pairs)
        if "peak memory, MiB" in found["trl"]:
            found["share of its memory"] = found["posttrain"]["peak memory, MiB"] / found["trl"]["peak memory, MiB"]
    return found
