"""Prompts that are tokenised as they are read, for GRPO and RLOO."""

import re
import shutil
from pathlib import Path

import pytest
from tiny import curve, run_policy, write_base, write_prompts

from posttrain.data import stream


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "WINDOW", 4)
    monkeypatch.setattr(stream, "LARGE_WINDOW", 8)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("model") / "base")


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_prompts_streamed(method: str, base: Path, tmp_path: Path, small_windows: None) -> None:
    """In the order of the file, those of a file read beforehand; shuffled and resumed in the second pass, the same."""
    data = write_prompts(tmp_path / "rows.jsonl", count=5)
    whole, streamed = (
        run_policy(method, base, data, tmp_path / name, "--no_shuffle_dataset", "--max_steps", "4", *words)
        for name, words in (("a", ()), ("b", ("--dataset_streaming",)))
    )
    assert curve(streamed, "loss", "grad_norm", "reward") == curve(whole, "loss", "grad_norm", "reward")
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    words = ["--dataset_streaming", "--max_steps", "8", "--save_strategy", "steps", "--save_steps", "5"]
    whole = run_policy(method, base, data, tmp_path / "c", *words)
    shutil.copytree(tmp_path / "c" / "checkpoint-5", tmp_path / "d" / "checkpoint-5")
    resumed = run_policy(method, base, data, tmp_path / "d", *words, "--resume_from_checkpoint")
    assert curve(resumed, "loss", "grad_norm", "reward") == curve(whole, "loss", "grad_norm", "reward")
    assert (tmp_path / "c/model.safetensors").read_bytes() == (tmp_path / "d/model.safetensors").read_bytes()


def test_streamed_prompts_that_are_too_long(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The model has room for 1,024 tokens; that is said of the very prompt, when it is read."""
    data = write_prompts(tmp_path / "rows.jsonl", count=5)
    for flag, value, expected in (
        ("--max_completion_length", "1000", r"rows\.jsonl line 1.*max_prompt_tokens is 24"),
        ("--max_prompt_tokens", "1020", "prompts of up to 1,020 tokens are more than the 1,024"),
        ("--max_completion_length", "1024", "prompts of up to 1 tokens are more"),
    ):
        with pytest.raises(AssertionError):
            run_policy("grpo", base, data, tmp_path / "a", flag, value, "--dataset_streaming")
        assert re.search(expected, capsys.readouterr().err)
