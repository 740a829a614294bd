"""Weights in shards and products in half precision: what is computed in float32 in one process is so in two."""

from __future__ import annotations

import importlib.util
import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from equal_steps import logged
from safetensors.torch import load_file
from several_commands import launch_ways
from tiny import run, run_policy, write_base, write_preference, write_prompts, write_sft

HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
needs_deepspeed = pytest.mark.skipif(not HAS_DEEPSPEED, reason="needs pip install -e '.[deepspeed]'")
PLAIN, ZERO = ["multi_gpu", "fsdp1", "fsdp2"], ["zero2", "zero3"]
WAYS = [*PLAIN, *(pytest.param(name, marks=needs_deepspeed) for name in ZERO)]
STARTS = {"dpo": run, "grpo": run_policy}
# An evaluation comes last before the model is saved.
FLAGS = {
    "dpo": ["--eval_strategy", "steps", "--eval_steps", "1", "--test_split_size", "4", "--max_steps", "2"],
    "grpo": ["--beta", "0.1", "--max_steps", "2"],
}


SPREAD = ["fsdp1", "fsdp2"]
# In float32, with a learning rate at which the last weights are not the best ones.
GETS_WORSE = (
    "--per_device_train_batch_size 4 --max_steps 4 --learning_rate 0.1 --lr_scheduler_type constant "
    "--eval_strategy steps --eval_steps 1 --test_split_size 8 --save_strategy steps --save_steps 1 "
    "--load_best_model_at_end"
)


def words(method: str, processes: int) -> list[str]:
    return ["--bf16", "--per_device_train_batch_size", str(8 // processes), *FLAGS[method]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each method in one process, and in two that share the weights in each way."""
    folder = tmp_path_factory.mktemp("half")
    base = write_base(folder / "base")
    rows = {"dpo": write_preference(folder / "pairs.jsonl", 24), "grpo": write_prompts(folder / "prompts.jsonl", 16)}
    commands: dict[str | None, list[list[str]]] = {way: [] for way in (None, *PLAIN, *(ZERO if HAS_DEEPSPEED else []))}
    for way in commands:
        for method, start in STARTS.items():
            to = partial(start, method, base, rows[method], folder / (way or "alone") / method)
            to(*words(method, 2 if way else 1), starter=commands[way].append)
    sft = write_sft(folder / "sft.jsonl", 32)
    for way in SPREAD:
        run("sft", base, sft, folder / way / "sft", *GETS_WORSE.split(), starter=commands[way].append)
        lora = [*words("dpo", 2), "--use_peft", "--lora_dropout", "0"]
        run("dpo", base, rows["dpo"], folder / way / "lora", *lora, starter=commands[way].append)
    launch_ways(commands, folder, any_precision=True)
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_a_policy_that_has_not_moved_is_its_reference(way: str, folder: Path) -> None:
    """With log-probs that are rounded to half precision, or summed in it, it would not be."""
    rounded = 1e-4 if way == "zero2" else 1e-6  # whose policy alone has all of its weights rounded
    assert logged(folder / way / "dpo")[0]["loss"] == pytest.approx(math.log(2), abs=rounded)
    assert logged(folder / way / "grpo")[0]["kl"] == pytest.approx(0.0, abs=rounded)


@pytest.mark.parametrize("method", STARTS)
@pytest.mark.parametrize("way", WAYS)
def test_the_same_losses_as_in_one_process(way: str, method: str, folder: Path) -> None:
    lines = list(zip(logged(folder / "alone" / method), logged(folder / way / method), strict=True))
    # FSDP and DeepSpeed round all of a model: another token is drawn now and then.
    for line, other in lines[:1] if way != "multi_gpu" and method == "grpo" else lines:
        for name in ("loss", "grad_norm", "eval_loss", "rewards/margins", "logps/chosen", "entropy"):
            if name in line:
                assert other[name] == pytest.approx(line[name], rel=2e-2, abs=1e-3), (name, line["step"])


@pytest.mark.parametrize("method", STARTS)
@pytest.mark.parametrize("way", WAYS)
def test_weights_are_saved_as_they_are_trained(way: str, method: str, folder: Path) -> None:
    """In float32: those of the head and the last norm as well, which FSDP keeps together after an evaluation, and of
    DeepSpeed those that it trains, not those that it multiplies."""
    alone = load_file(folder / "alone" / method / "model.safetensors")
    for name, weight in load_file(folder / way / method / "model.safetensors").items():
        assert weight.dtype == torch.float32
        torch.testing.assert_close(weight, alone[name], rtol=0, atol=5e-2, msg=name)  # two steps of 0.01
        assert not torch.equal(weight, weight.bfloat16().float()), name


@pytest.mark.parametrize("way", SPREAD)
def test_the_best_weights_are_taken_back(way: str, folder: Path) -> None:
    """Those of the outermost unit as well, which is whole after an evaluation."""
    out = folder / way / "sft"
    best = json.loads((out / "trainer_state.json").read_text())["best_global_step"]
    assert best < 4
    expected = load_file(out / f"checkpoint-{best}" / "model.safetensors")
    for name, weight in load_file(out / "model.safetensors").items():
        assert torch.equal(weight, expected[name]), name


@pytest.mark.parametrize("way", SPREAD)
def test_adapters_whose_reference_comes_first_are_trained(way: str, folder: Path) -> None:
    """The first pass of all is the one without them, in which nothing wants a gradient."""
    losses = [line["loss"] for line in logged(folder / way / "lora") if "loss" in line]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert abs(losses[1] - losses[0]) > 1e-4
