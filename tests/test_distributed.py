"""Two processes that share the weights in each of the ways there are: the same losses as one process, one whole model
folder, and checkpoints to go on from. On CPUs; DeepSpeed where it is installed."""

from __future__ import annotations

import importlib.util
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from equal_steps import logged, steps_seen
from safetensors.torch import load_file
from several_commands import launch_ways
from tiny import curve, run, run_policy, write_base, write_preference, write_prompts, write_sft

HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
needs_deepspeed = pytest.mark.skipif(not HAS_DEEPSPEED, reason="needs pip install -e '.[deepspeed]'")
PLAIN, ZERO = ["multi_gpu", "fsdp1", "fsdp2"], ["zero1", "zero2", "zero3"]
WAYS = [*PLAIN, *(pytest.param(name, marks=needs_deepspeed) for name in ZERO)]
# What each method is run with; together they come by adapters, a reference of every kind, evaluation, accumulation.
METHODS = {
    "sft": ["--packing", "--max_length", "64", "--load_best_model_at_end"],
    "reward": ["--use_peft", "--lora_dropout", "0", "--logging_steps", "2", "--max_steps", "5"],
    "dpo": [
        "--precompute_ref_log_probs",
        "--train_sampling_strategy",
        "group_by_length",
        "--loss_type",
        "sigmoid",
        "sft",
    ],
    # One completion to evaluate on: a process has none.
    "grpo": [
        "--num_generations_eval",
        "1",
        "--test_split_size",
        "1",
        "--beta",
        "0.1",
        "--sync_ref_model",
        "--ref_model_sync_steps",
        "2",
        "--steps_per_generation",
        "4",
    ],
    "rloo": ["--use_peft", "--lora_dropout", "0"],
}
EVALUATION = ["--eval_strategy", "steps", "--eval_steps", "2", "--test_split_size", "4"]
CHECKPOINTS = ["--save_strategy", "steps", "--save_steps", "2"]
# Five prompts to evaluate on, so that the last batch is small; and quantiles over the tokens of all processes.
SMALL = [
    *("--max_steps", "2", "--eval_strategy", "steps", "--eval_steps", "1", "--test_split_size", "5"),
    *("--top_entropy_quantile", "0.5", "--eval_temperature", "0", "--num_generations_eval", "1"),
    *("--save_strategy", "steps", "--save_steps", "1"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def ending(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose completions end at many a token, so that they differ in length."""
    folder = write_base(tmp_path_factory.mktemp("models") / "ending")
    ends = json.dumps({"eos_token_id": list(range(3, 90))})
    (folder / "generation_config.json").write_text(ends, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rows")
    # 30 to train on: of the last micro-batch of the epoch nothing is left for the second process.
    pairs, prompts = write_preference(folder / "pairs.jsonl", 34), write_prompts(folder / "prompts.jsonl", 36)
    sft = write_sft(folder / "sft.jsonl", 34)
    return {"sft": sft, "reward": pairs, "dpo": pairs, "grpo": prompts, "rloo": prompts}


def words(method: str, processes: int) -> list[str]:
    """A step of 8 rows, or 16 completions: at once, or in two processes that take two micro-batches each."""
    batch = 16 if method in ("grpo", "rloo") else 8
    per_device, pieces = (batch, 1) if processes == 1 else (batch // 4, 2)
    extra = METHODS[method]
    if method == "grpo" and processes == 1:  # as many optimizer steps a generation: two
        extra = [*extra[:-1], "2"]
    sizes = ["--per_device_train_batch_size", str(per_device), "--gradient_accumulation_steps", str(pieces)]
    return [*sizes, "--per_device_eval_batch_size", str(8 // processes), "--max_steps", "4", *EVALUATION, *extra]


def recorded(folder: Path, method: str) -> list[str]:
    return ["--record_steps", str(folder / f"{method}.jsonl")]


@pytest.fixture(scope="module")
def alone(base: Path, rows: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """method → output folder of the run in one process, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("alone")

    def of(method: str) -> Path:
        if not (folder / method).exists():
            start = run_policy if method in ("grpo", "rloo") else run
            more = [*words(method, 1), *CHECKPOINTS, *recorded(folder, method)]
            start(method, base, rows[method], folder / method, *more)
        return folder / method

    return of


@pytest.fixture(scope="module")
def together(
    base: Path, ending: Path, rows: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """name of a configuration → folder with a run of each method, and one resumed from its checkpoint."""
    folder = tmp_path_factory.mktemp("together")
    commands: dict[str, list[list[str]]] = {way: [] for way in (*PLAIN, *(ZERO if HAS_DEEPSPEED else []))}
    for way in commands:
        for method in METHODS:
            start = run_policy if method in ("grpo", "rloo") else run
            record = partial(start, method, base, rows[method], starter=commands[way].append)
            more, out = words(method, 2) + CHECKPOINTS, folder / way / method
            record(out, *more, *recorded(folder / way, method))
            record(folder / way / f"{method}-resumed", *more, "--resume_from_checkpoint", str(out / "checkpoint-2"))
    small = [*SMALL, "--per_device_train_batch_size", "4", "--per_device_eval_batch_size", "2"]
    commands["cpu"] = []
    run_policy("grpo", ending, rows["grpo"], folder / "cpu" / "grpo", *small, starter=commands["cpu"].append)
    launch_ways(commands, folder)
    return {way: folder / way for way in commands}


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def state_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "trainer_state.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", WAYS)
def test_the_same_steps_as_in_one_process(way: str, method: str, alone: Any, together: dict[str, Path]) -> None:
    one, two = alone(method), together[way] / method
    wanted, actual = logged(one), logged(two)
    assert [line.keys() for line in actual] == [line.keys() for line in wanted]
    assert sum("eval_loss" in line for line in wanted) >= 2
    ends = [state["log_history"][-1]["train_loss"] for state in map(state_of, (one, two))]
    assert ends[1] == pytest.approx(ends[0], rel=2e-4, abs=2e-5)
    for line, other in zip(wanted, actual, strict=True):
        for name, value in line.items():
            assert other[name] == pytest.approx(value, rel=2e-4, abs=2e-5), (name, line["step"])
    # The same rows in each step, and the same completions, to the last token.
    assert steps_seen(one.with_suffix(".jsonl")) == steps_seen(two.with_suffix(".jsonl"))
    file = "adapter_model.safetensors" if "--use_peft" in METHODS[method] else "model.safetensors"
    weights, others = load_file(one / file), load_file(two / file)
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=0, atol=2e-3, msg=name)
    assert files_of(one) == files_of(two)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_run_ends_as_the_undisturbed_one(way: str, method: str, together: dict[str, Path]) -> None:
    whole, resumed = together[way] / method, together[way] / f"{method}-resumed"
    file = "adapter_model.safetensors" if "--use_peft" in METHODS[method] else "model.safetensors"
    assert (resumed / file).read_bytes() == (whole / file).read_bytes()
    assert curve(state_of(resumed), "loss") == curve(state_of(whole), "loss")


def test_a_small_last_batch_and_a_quantile_are_those_of_one_process(
    ending: Path, rows: dict[str, Path], together: dict[str, Path], tmp_path: Path
) -> None:
    one = run_policy("grpo", ending, rows["grpo"], tmp_path / "one", *SMALL, "--per_device_train_batch_size", "8")
    two = state_of(together["cpu"] / "grpo")
    trained = ["loss", "grad_norm", "reward", "completions/mean_length", "entropy", "num_tokens"]
    for names in (trained, ["eval_reward", "eval_completions/mean_length"]):
        expected, actual = torch.tensor(curve(one, *names)), torch.tensor(curve(two, *names))
        assert len(expected) == 2
        torch.testing.assert_close(actual, expected, rtol=2e-4, atol=1e-5)
    assert all(1 < length < 8 for (length,) in curve(one, "completions/mean_length"))
