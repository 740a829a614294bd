"""Batches that a thread puts together while a GPU computes: the same ones, after a checkpoint too. On a CPU, forced."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny import curve, run, run_policy, write_base, write_prompts, write_sft

from posttrain import trainer as trainer_module
from posttrain.data.ahead import Coming

WORDS = ("--per_device_train_batch_size", "3", "--gradient_accumulation_steps", "2", "--num_train_epochs", "3")
# 16 rows are 6 micro-batches and 3 steps an epoch, the last one of a single row.
EVERY = ("--max_steps", "-1", "--logging_steps", "1", "--save_strategy", "steps", "--save_steps", "1")


@pytest.fixture
def material(tmp_path: Path) -> tuple[Path, Path]:
    return write_base(tmp_path / "base"), write_sft(tmp_path / "rows.jsonl")


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Those that have read ahead."""
    found: list[Any] = []

    class Noted(Coming):  # type: ignore[type-arg]
        def __init__(self, things: Any):
            found.append(threading.current_thread())
            super().__init__(things)

    monkeypatch.setattr(trainer_module, "Coming", Noted)
    return found


def test_the_same_batches_come_also_after_a_checkpoint(
    material: tuple[Path, Path], tmp_path: Path, threads: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run("sft", *material, tmp_path / "plain", *WORDS, *EVERY)
    assert not threads
    monkeypatch.setattr(trainer_module, "READING_AHEAD", {"cpu"})
    ahead = run("sft", *material, tmp_path / "ahead", *WORDS, *EVERY)
    assert len(threads) == 9  # one a step
    assert curve(ahead, "loss", "grad_norm", "num_tokens") == curve(plain, "loss", "grad_norm", "num_tokens")
    for step in (2, 3):  # in the middle of an epoch, and at its end
        checkpoint = str(tmp_path / f"ahead/checkpoint-{step}")
        again = run(
            "sft", *material, tmp_path / f"again-{step}", *WORDS, *EVERY, "--resume_from_checkpoint", checkpoint
        )
        assert curve(again, "loss", "grad_norm") == curve(plain, "loss", "grad_norm")
        weights, expected = (load_file(tmp_path / name / "model.safetensors") for name in (f"again-{step}", "plain"))
        assert all(weights[name].equal(expected[name]) for name in expected)


def test_what_is_sampled_is_not_read_ahead(
    material: tuple[Path, Path], tmp_path: Path, threads: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "READING_AHEAD", {"cpu"})
    run_policy("grpo", material[0], write_prompts(tmp_path / "prompts.jsonl"), tmp_path / "grpo", "--max_steps", "2")
    run("sft", *material, tmp_path / "stream", "--dataset_streaming", "--max_steps", "2")
    assert not threads


def test_an_error_while_reading_ahead_is_that_of_the_run(
    material: tuple[Path, Path], tmp_path: Path, threads: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from posttrain.methods import sft

    monkeypatch.setattr(trainer_module, "READING_AHEAD", {"cpu"})
    packs, calls = sft.pack, []

    def broken(*args: Any, **kwargs: Any) -> Any:
        calls.append(threading.current_thread().name)
        if len(calls) == 3:
            raise ZeroDivisionError("of the third batch")
        return packs(*args, **kwargs)

    monkeypatch.setattr(sft, "pack", broken)
    with pytest.raises(ZeroDivisionError, match="of the third batch"):
        run("sft", *material, tmp_path / "broken", "--per_device_train_batch_size", "2")
    assert calls[-1] == "posttrain-stream"
