"""vLLM in the trainer's process, with a stand-in for the package: what it is told, and what it leaves behind."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import write_base

from posttrain.config import parse_command_line
from posttrain.errors import EngineLost
from posttrain.methods.grpo import GRPO
from posttrain.rollout.sampling import Sampling
from posttrain.rollout.vllm_colocated import VLLMInProcess


class LLM:
    """Notes what is asked of it."""

    def __init__(self, **settings: Any):
        self.settings, self.calls = settings, list[str]()
        torch.set_num_threads(1)
        torch.set_float32_matmul_precision("highest")

    def generate(self, asked: list[Any], how: list[Any], use_tqdm: bool) -> list[Any]:
        self.calls.append("generate")
        if how[0].top_p == 0:
            raise ValueError("top_p must be in (0, 1]")
        step = {5: SimpleNamespace(logprob=-0.5)}
        output = SimpleNamespace(token_ids=[5], logprobs=[step], finish_reason="stop")
        return [SimpleNamespace(outputs=[output]) for _ in asked]

    def sleep(self, level: int) -> None:
        self.calls.append("sleep")

    def wake_up(self) -> None:
        self.calls.append("wake")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Words, and whether training is in bfloat16 → the vLLM."""
    stand_in = SimpleNamespace(LLM=LLM, SamplingParams=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    base = write_base(tmp_path / "base")

    def make(*words: str, bf16: bool = False, longest: int | None = None) -> VLLMInProcess:
        given = ["--model_name_or_path", str(base), "--dataset_name", "rows.jsonl", "--reward_funcs", "accuracy_reward"]
        config: Any = parse_command_line("grpo", [*given, "--use_vllm", "--vllm_mode", "colocate", *words])[0]
        arguments: Any = SimpleNamespace(world_size=1, seed=0, bf16=bf16, fp16=False)
        model: Any = SimpleNamespace(dtype=torch.float32)
        return VLLMInProcess(config, model, arguments, longest)

    return make


def test_it_computes_in_the_precision_of_training_and_has_room_for_the_longest_row(made: Any) -> None:
    settings = made(bf16=True, longest=300)._llm.settings
    assert settings["dtype"] == "bfloat16" and settings["max_model_len"] == 300
    settings = made("--vllm_max_model_length", "2000", longest=300)._llm.settings
    assert settings["dtype"] == "float32" and settings["max_model_len"] == 2000


def test_it_leaves_the_processs_settings_as_they_were(made: Any) -> None:
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("high")
    try:
        made()
        assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (2, "high")
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])


def test_it_sleeps_when_a_generation_is_over(made: Any) -> None:
    vllm = made("--vllm_enable_sleep_mode")
    for _ in range(2):
        (drawn,) = vllm.draw([[1, 2]], [0], Sampling(4, ()))
    vllm.rest()
    vllm.rest()
    assert vllm._llm.calls == ["sleep", "wake", "generate", "generate", "sleep"]
    assert np.array_equal(drawn.token_ids, [5]) and drawn.ended


def test_a_cut_distribution_and_weights_of_whole_completions_are_warned_about(
    made: Any, caplog: pytest.LogCaptureFixture
) -> None:
    given = "--model_name_or_path m --dataset_name d --reward_funcs accuracy_reward --use_vllm".split()
    for words in ([], ["--top_p", "0.9", "--vllm_importance_sampling_mode", "token_truncate"]):
        GRPO(parse_command_line("grpo", [*given, *words])[0])  # type: ignore[arg-type]
    assert not caplog.records
    GRPO(parse_command_line("grpo", [*given, "--top_p", "0.9", "--top_k", "5"])[0])  # type: ignore[arg-type]
    (record,) = caplog.records
    assert record.getMessage().startswith("--top_p --top_k: vLLM draws from what is left")


def test_an_error_inside_is_the_end_of_the_engine(made: Any) -> None:
    with pytest.raises(EngineLost, match="ValueError: top_p must be in"):
        made().draw([[1, 2]], [0], Sampling(4, (), top_p=0.0))
