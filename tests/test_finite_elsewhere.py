"""Where something else than the trainer steps. A loss scaler, as `--fp16` has one: what it skips to find its scale does
not count, what is not finite does. Optimizers that update before the gradient is known."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import NanGradient, spoil
from safetensors.torch import load_file
from tiny import run, write_base, write_sft
from transformers import Trainer

from posttrain.trainer import PostTrainer


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Gives every trainer a loss scaler on the CPU, which starts at 4; the scales after each step."""
    scales: list[float] = []
    plain = Trainer.create_accelerator_and_postprocess
    log = PostTrainer.log

    def create(self: Any) -> None:
        plain(self)
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)

        def unscale(optimizer: Any = None) -> None:
            [one] = self.accelerator._optimizers
            self.accelerator.scaler.unscale_(one.optimizer)

        self.accelerator.unscale_gradients = unscale

    def log_scale(self: PostTrainer, logs: dict[str, float], *args: Any) -> None:
        if "learning_rate" in logs:
            scales.append(self.accelerator.scaler.get_scale())
        log(self, logs, *args)

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", create)
    monkeypatch.setattr(PostTrainer, "log", log_scale)
    return scales


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "model")


def test_an_overflow_is_the_scaler_s_own_matter_until_the_scale_is_1(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scaled: list[float]
) -> None:
    spoil(monkeypatch, [1, 2, 3, 4], NanGradient.apply)
    state = run("sft", base, write_sft(tmp_path / "rows.jsonl"), tmp_path / "out", "--max_steps", "5")
    assert scaled == [2.0, 1.0, 0.5, 0.25, 0.25]
    lines = state["log_history"][:5]
    assert [line.get("nonfinite_steps") for line in lines] == [None, None, 1, 2, 2]
    assert ["loss" in line for line in lines] == [True, True, False, False, True]
    assert ["grad_norm" in line for line in lines] == [False] * 4 + [True]
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert all(value.isfinite().all() for value in after.values())
    assert max((after[name] - before[name]).abs().max() for name in after) < 1.1e-2  # of one step


@pytest.mark.parametrize("change", [lambda loss: loss * torch.nan, lambda loss: loss + torch.inf])
def test_a_loss_that_is_not_finite_counts_at_any_scale(
    change: Any,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scaled: list[float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also one whose gradient is finite, of which the scaler knows nothing; the step after it is an ordinary one."""
    spoil(monkeypatch, [1, 3], change)
    caplog.set_level(logging.WARNING)
    state = run("sft", base, write_sft(tmp_path / "rows.jsonl"), tmp_path / "out", "--max_steps", "4")
    assert [line.get("nonfinite_steps") for line in state["log_history"][:4]] == [1, 1, 2, 2]
    assert caplog.text.count("the loss is not finite") == 2
    rates = [line["learning_rate"] for line in state["log_history"][:4]]
    assert rates == sorted(set(rates), reverse=True)
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert all(value.isfinite().all() for value in after.values())


@pytest.mark.parametrize("optim", ["galore_adamw_layerwise", "lomo"])
def test_what_cannot_be_taken_back_ends_the_run_at_once(
    optim: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Optimizers that update in the backward pass; their packages need not be there for this."""
    spoil(monkeypatch, [2])
    plain = PostTrainer._is_applied_already.fget
    assert plain is not None

    def asked_of_another(self: PostTrainer) -> bool:
        with monkeypatch.context() as patch:
            patch.setattr(self.args, "optim", optim)
            return bool(plain(self))

    monkeypatch.setattr(PostTrainer, "_is_applied_already", property(asked_of_another))
    with pytest.raises(AssertionError):
        run("sft", base, write_sft(tmp_path / "rows.jsonl"), tmp_path / "out")
    said = capsys.readouterr().err
    assert "step 2: the loss is not finite" in said and "the weights are spoilt" in said
    assert not list(tmp_path.glob("out/checkpoint-*")) and not (tmp_path / "out" / "model.safetensors").exists()
