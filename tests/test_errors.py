"""How a program ends: mistakes, memory that ran out, and the advice that comes with it."""

import numpy as np
import pytest
import torch

from posttrain import cli
from posttrain.cli import main
from posttrain.config import METHODS, CommonConfig, parse_command_line
from posttrain.errors import UserError, is_out_of_memory, report_mistakes
from posttrain.out_of_memory import memory_advice

NEEDED = ["--model_name_or_path", "org/model", "--dataset_name", "org/rows"]
CUDA_TEXT = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.53 GiB of which 1.10 GiB is "
    "free. Of the allocated memory 20.01 GiB is allocated by PyTorch. If reserved but unallocated memory is large "
    "try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
)


def failing(error: BaseException) -> int:
    def run() -> int:
        raise error

    return report_mistakes(run)


def test_a_mistake_names_its_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(UserError("rows.jsonl line 3: no text")) == 2
    assert failing(UserError("the hub wants a token", page="troubleshooting.md#hub")) == 2
    assert capsys.readouterr().err == (
        "posttrain: error: rows.jsonl line 3: no text\n"
        "posttrain: error: the hub wants a token\nMore: docs/troubleshooting.md#hub\n"
    )


def test_real_allocations_that_fail_are_known_for_what_they_are() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**48, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    with pytest.raises(MemoryError) as from_numpy:
        np.zeros(2**48, dtype=np.uint8)
    assert is_out_of_memory(from_numpy.value)
    assert is_out_of_memory(torch.OutOfMemoryError(CUDA_TEXT))
    assert is_out_of_memory(RuntimeError("No executable batch size found, reached zero."))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(UserError("a cut of out of memory"))


def test_memory_that_ran_out_ends_with_advice_and_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(config: CommonConfig) -> None:
        raise torch.OutOfMemoryError(CUDA_TEXT)

    monkeypatch.setattr(cli, "_train", train)
    assert main(["sft", *NEEDED]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "posttrain: error: out of memory: CUDA out of memory. Tried to allocate 2.00 GiB"
    assert "--per_device_train_batch_size 4 --gradient_accumulation_steps 2 " in lines[2]
    assert max(map(len, lines)) <= 100
    assert lines[-2] == "POSTTRAIN_TRACEBACK=1 in front of the command shows where it happened"
    assert lines[-1] == "More: docs/troubleshooting.md#out-of-memory"
    monkeypatch.setenv("POSTTRAIN_TRACEBACK", "1")
    with pytest.raises(torch.OutOfMemoryError) as caught:
        main(["sft", *NEEDED])
    assert "--max_length 512" in caught.value.__notes__[0]


def test_how_much_was_asked_for_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> int:
        return int(torch.empty(2**48, dtype=torch.uint8)[0])

    assert report_mistakes(run) == 1
    assert "out of memory: this machine has no further 268,435,456 MiB" in capsys.readouterr().err
    assert failing(RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)")) == 1
    assert failing(MemoryError()) == 1
    assert "out of memory: MemoryError" in capsys.readouterr().err


def test_what_is_no_mistake_of_a_user_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        failing(ZeroDivisionError())


def flags(config: CommonConfig) -> list[str]:
    return [flags for advice in memory_advice(config).values() for flags, _ in advice]


@pytest.mark.parametrize("method", METHODS)
def test_advice_can_be_typed_and_leaves_the_batch_as_it_was(method: str) -> None:
    rewards = ["--reward_funcs", "accuracy_reward", "--num_generations", "6"] if method in ("grpo", "rloo") else []
    batch = ["--per_device_train_batch_size", "12", "--gradient_accumulation_steps", "3"]
    words = [*NEEDED, *rewards, *batch, "--eval_strategy", "steps"]
    config, _ = parse_command_line(method, words)
    same = memory_advice(config)["the optimizer steps stay as they are"]
    for flag in flags(config):
        parse_command_line(method, [*words, *flag.split()])
    smaller, _ = parse_command_line(method, [*words, *same[0][0].split()])
    assert (smaller.per_device_train_batch_size, smaller.gradient_accumulation_steps) == (6, 6)


def test_advice_leaves_out_what_is_done_already() -> None:
    words = "--per_device_train_batch_size 1 --gradient_checkpointing --use_peft --load_in_4bit --dtype bfloat16"
    config, _ = parse_command_line("sft", [*NEEDED, *words.split(), "--max_length", "none"])
    assert flags(config) == []
    config, _ = parse_command_line("dpo", [*NEEDED, "--precompute_ref_log_probs"])
    assert not any("ref" in flag for flag in flags(config))
    config, _ = parse_command_line("sft", [*NEEDED, "--per_device_train_batch_size", "7"])
    assert flags(config)[0] == "--per_device_train_batch_size 1 --gradient_accumulation_steps 7"


@pytest.mark.parametrize("on_gpu", [True, False])
def test_advice_knows_the_defaults_of_a_gpu(on_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    for words, is_on in (([], on_gpu), (["--use_cpu"], False), (["--no_gradient_checkpointing"], False)):
        config, _ = parse_command_line("sft", [*NEEDED, *words])
        assert ("--gradient_checkpointing" in flags(config)) != is_on


def test_advice_is_taken_and_says_what_happens() -> None:
    words = [*NEEDED, "--dataset_streaming", "--max_steps", "5"]
    config, _ = parse_command_line("dpo", words)
    for flag in flags(config):
        parse_command_line("dpo", [*words, *flag.split()])
    config, _ = parse_command_line("reward", NEEDED)
    changes = dict(memory_advice(config)["what is trained changes"])
    assert changes["--max_length 512"] == "leaves more pairs out"
