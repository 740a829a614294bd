"""What `posttrain plan` warns about, and what it says to type."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from planned_models import LLAMA31_8B, QWEN2_05B, activations_counted_once, write_config
from tiny import write_preference, write_prompts, write_rows, write_sft

from posttrain.config import parse_command_line
from posttrain.planning import plan
from posttrain.planning.report import Plan

FILES = {"sft": "sft.jsonl", "dpo": "pairs.jsonl", "reward": "pairs.jsonl", "grpo": "prompts.jsonl"}
BATCH = "--per_device_train_batch_size 8"
IDS = "--dataset_name {folder}/ids.jsonl"  # 4 of 33 rows have 400 tokens, the others 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Models without weights, and rows."""
    here = tmp_path_factory.mktemp("advice")
    write_config(here / "small", QWEN2_05B | {"num_hidden_layers": 2, "vocab_size": 1000})
    write_config(here / "short", QWEN2_05B | {"num_hidden_layers": 2, "max_position_embeddings": 100})
    write_config(here / "half", QWEN2_05B | {"tie_word_embeddings": False})
    write_config(here / "large", LLAMA31_8B)
    write_sft(here / "sft.jsonl", 33)
    write_preference(here / "pairs.jsonl", 32)
    write_prompts(here / "prompts.jsonl", 16)
    write_rows(here / "ids.jsonl", [{"input_ids": [5] * (400 if i < 4 else 10)} for i in range(33)])
    write_sft(here / "test.jsonl", 33)
    (here / "both").mkdir()
    for name in ("train", "test"):
        write_sft(here / "both" / f"{name}.jsonl", 33)
    with activations_counted_once():
        yield here


def planned(folder: Path, method: str, model: str, words: str, gpu: str | None = "a100-80gb") -> Plan:
    rows = "" if "dataset_name" in words else f"--dataset_name {folder / FILES[method]}"
    reward = "--reward_funcs accuracy_reward" if method == "grpo" else ""
    named = f"--model_name_or_path {folder / model} --output_dir {folder / 'out'} --cache_dir {folder / 'cache'}"
    config, launch = parse_command_line(method, shlex.split(f"{named} {rows} {reward} {words}".format(folder=folder)))
    return plan(config, launch, gpu=gpu)


@pytest.mark.parametrize(
    ("method", "model", "words", "said", "typed"),
    [
        ("sft", "large", BATCH, "needs", "--use_peft"),
        (
            "sft",
            "small",
            f"{BATCH} {IDS} --max_length 128",
            "cuts 4 of 33 rows (12%)",
            "",
        ),
        ("sft", "small", "--per_device_train_batch_size 64", "fewer than a step takes (64)", "size 33"),
        ("sft", "small", "--per_device_train_batch_size 32", "has 1 of 32 rows", "--dataloader_drop_last"),
        ("dpo", "half", "--per_device_train_batch_size 1", "a step takes 1 pairs", "--gradient_accumulation_steps 16"),
        ("dpo", "half", f"{BATCH} --use_peft --learning_rate 1e-6", "ten times that", "--learning_rate 1e-05"),
        ("sft", "half", f"{BATCH} --learning_rate 2e-4", "is one for adapters", "--learning_rate 2e-05"),
        ("sft", "small", f"{BATCH} --warmup_steps 12", "rises for 12 of 15 steps", "--warmup_steps 0.05"),
        ("sft", "small", f"{BATCH} --num_train_epochs 30", "30 passes over 33 rows", "--num_train_epochs 3"),
        ("sft", "small", f"{BATCH} --gradient_accumulation_steps 4", "6 optimizer steps in all", "steps 1"),
        ("grpo", "small", f"{BATCH} --num_generations 2", "2 completions of a prompt", "--num_generations 8"),
        (
            "grpo",
            "small",
            f"{BATCH} --num_generations 8 --generation_batch_size 256",
            "asks 32 prompts and there are 16",
            "--generation_batch_size 128",
        ),
        (
            "grpo",
            "small",
            f"{BATCH} --num_generations 8 --steps_per_generation 8",
            "trained on in 8 steps",
            "--gradient_accumulation_steps 4",
        ),
        ("sft", "small", f"{BATCH} --max_length 256", "with --packing", "--packing"),
        ("sft", "short", f"{BATCH} {IDS}", "has 100 positions", "--max_length 100"),
        ("grpo", "short", f"{BATCH} --max_completion_length 90", "has 100 positions", "--max_completion_length"),
        (
            "sft",
            "small",
            f"{BATCH} --dataset_name {{folder}}/both --eval_strategy steps --eval_steps 1 "
            "--per_device_eval_batch_size 1",
            "evaluations take",
            "--eval_steps",
        ),
    ],
)
def test_warnings_say_what_to_type(method: str, model: str, words: str, said: str, typed: str, folder: Path) -> None:
    found = planned(folder, method, model, words).findings
    [warning] = [one for one in found if said in one.text]
    assert typed in " ".join(warning.flags)
    assert all(flag in warning.text for flag in warning.flags)


def test_what_is_fine_is_not_warned_about(folder: Path) -> None:
    words = f"{BATCH} --use_peft --learning_rate 2e-4 --max_length 128 --dataset_name {folder / 'test.jsonl'} "
    words += "--gradient_accumulation_steps 2 --max_steps 40 --num_train_epochs 3 --dataloader_drop_last"
    texts = [one.text for one in planned(folder, "sft", "half", words).findings]
    assert [text for text in texts if "learning rate" in text or "needs" in text or "rises" in text] == []


def test_a_disk_that_is_too_small(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage(folder)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=2**30))
    found = planned(folder, "sft", "half", f"{BATCH} --save_steps 2")
    assert found.disk.num_saves == 7
    # A checkpoint holds the weights and Adam's two numbers, all in float32.
    assert found.disk.checkpoint == pytest.approx(3 * 4 * found.num_parameters, rel=1e-3)
    [warning] = [one for one in found.findings if one.flags == ("--save_total_limit", "1")]
    assert "1.0 GiB free" in warning.text


def test_ends_that_are_never_trained_on(folder: Path) -> None:
    found = planned(folder, "sft", "small", f"{BATCH} {IDS}")
    assert any("EOS token is never trained on" in one.text for one in found.findings)


@pytest.mark.parametrize(
    ("words", "gib", "typed"),
    [
        ("", 1.8, "--use_peft"),
        ("--num_processes 2 --accelerate_config multi_gpu", 1.8, "--accelerate_config fsdp2"),
        ("--use_peft", 1.8, "--dtype bfloat16"),
        ("--use_peft --dtype bfloat16", 1.8, "--load_in_4bit"),
        ("", 10, "--per_device_train_batch_size 4 --gradient_accumulation_steps 2"),
    ],
)
def test_where_weights_have_no_room_other_weights_are_proposed(
    words: str, gib: float, typed: str, folder: Path
) -> None:
    config, launch = parse_command_line(
        "sft",
        shlex.split(
            f"--model_name_or_path {folder / 'half'} --dataset_name {folder / FILES['sft']} "
            f"--output_dir {folder / 'out'} --cache_dir {folder / 'cache'} {BATCH} {words}"
        ),
    )
    found = plan(config, launch, gpu="t4", memory_gib=gib)
    [warning] = [one for one in found.findings if "needs" in one.text]
    assert " ".join(warning.flags) == typed
