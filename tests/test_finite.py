"""Steps that are not finite: never applied, counted, their rows named, and the end of a run that has nothing else."""

from __future__ import annotations

import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import NanGradient, spoil
from safetensors.torch import load_file
from tiny import curve, run, run_policy, write_base, write_preference, write_prompts, write_sft

from posttrain.batch import PackedBatch
from posttrain.cli import main
from posttrain.logprobs import TokenStatistics
from posttrain.losses import Loss
from posttrain.methods.grpo import GRPO
from posttrain.methods.sft import SFT
from posttrain.trainer import PostTrainer
from posttrain.watch import NotFinite

STEPS = ["--max_steps", "4", "--per_device_train_batch_size", "2"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sft(tmp_path_factory.mktemp("rows") / "rows.jsonl")


def everything(trainer: PostTrainer) -> dict[str, torch.Tensor]:
    """Copies of the parameters and of what the optimizer keeps of them."""
    found = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    for i, state in enumerate(trainer.optimizer.state.values()):
        found |= {f"{i} {name}": torch.as_tensor(value).clone() for name, value in state.items()}
    return found


@pytest.fixture
def after_steps(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """What stands in the trainer at the end of each step."""
    found: list[dict[str, torch.Tensor]] = []
    plain = PostTrainer._maybe_log_save_evaluate

    def look(self: PostTrainer, *args: Any, **kwargs: Any) -> None:
        if len(found) < self.state.global_step:
            found.append(everything(self))
        plain(self, *args, **kwargs)

    monkeypatch.setattr(PostTrainer, "_maybe_log_save_evaluate", look)
    return found


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor", "sgd"])
@pytest.mark.parametrize("change", [lambda loss: loss * torch.nan, lambda loss: loss + torch.inf, NanGradient.apply])
def test_a_step_that_is_not_finite_changes_nothing_but_the_schedule(
    optim: str,
    change: Any,
    base: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after_steps: list[dict[str, torch.Tensor]],
) -> None:
    spoil(monkeypatch, [2, 4], change)
    words = ["--optim", optim, "--weight_decay", "0.1", "--gradient_accumulation_steps", "2"]
    words += ["--optim_args", "momentum=0.9"] if optim == "sgd" else []
    state = run("sft", base, rows, tmp_path / "out", *STEPS, *words)
    assert len(after_steps) == 4
    assert same(after_steps[0], after_steps[1]) and same(after_steps[2], after_steps[3])
    assert not same(after_steps[1], after_steps[2])
    assert all(value.isfinite().all() for value in after_steps[3].values())
    lines = [line for line in state["log_history"] if "learning_rate" in line]
    rates = [line["learning_rate"] for line in lines]
    assert len(rates) == 4 and rates == sorted(set(rates), reverse=True)
    assert ["loss" in line for line in lines] == ["grad_norm" in line for line in lines] == [True, False, True, False]
    assert [line.get("nonfinite_steps") for line in lines] == [None, 1, 1, 2]
    assert state["log_history"][-1]["nonfinite_steps"] == 2


def test_the_first_step_may_be_skipped(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after_steps: list[Any]
) -> None:
    """Nor does torch warn of a schedule that is ahead of its optimizer: warnings are errors here."""
    spoil(monkeypatch, [1])
    run("sft", base, rows, tmp_path / "out", *STEPS)
    before = load_file(base / "model.safetensors")
    assert all(torch.equal(before[name], value) for name, value in after_steps[0].items())
    assert not same(after_steps[0], after_steps[1])


def test_logged_means_are_over_the_steps_that_were_applied(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a learning rate of 0, steps are independent: the mean of steps 1, 3 and 4 of the run without a fault."""
    words = [*STEPS, "--learning_rate", "0", "--metrics_file"]
    names = ("loss", "entropy", "mean_token_accuracy")
    each = [line for line in run("sft", base, rows, tmp_path / "a", *words, str(tmp_path / "a.json"))["log_history"]]
    spoil(monkeypatch, [2])
    state = run("sft", base, rows, tmp_path / "b", *words, str(tmp_path / "b.json"), "--logging_steps", "4")
    line = state["log_history"][0]
    # Metrics are means over targets, of which rows of messages have all their tokens but the first.
    tokens = [each[i]["num_tokens"] - (each[i - 1]["num_tokens"] if i else 0) - 2 for i in range(4)]
    for name in names:
        weights = [1.0] * 4 if name == "loss" else tokens
        expected = sum(each[i][name] * weights[i] for i in (0, 2, 3)) / sum(weights[i] for i in (0, 2, 3))
        assert line[name] == pytest.approx(expected, rel=1e-5), name
    assert line["num_tokens"] == each[3]["num_tokens"]  # they have been read
    assert state["log_history"][-1]["train_loss"] == pytest.approx(line["loss"])
    metrics = json.loads((tmp_path / "b.json").read_text())
    assert metrics["nonfinite_steps"] == 1 and metrics["loss"] == line["loss"]


def lines_of(text: str, what: str) -> list[str]:
    """The warnings of a kind, from the number of the step on."""
    return [line[line.index("step ") :] for line in text.splitlines() if what in line]


@pytest.mark.parametrize("method", ["sft", "reward", "dpo", "grpo", "rloo"])
def test_the_rows_of_a_skipped_step_are_named(
    method: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a loss, those of its micro-batch; of a gradient, those of the step. In the order of the file here: what has
    not been trained on in the first step, is in the second."""
    is_policy = method in ("grpo", "rloo")
    writes = {"sft": write_sft, "reward": write_preference, "dpo": write_preference}
    data = writes.get(method, write_prompts)(tmp_path / "rows.jsonl", 4)
    start, size = (run_policy, "8") if is_policy else (run, "1")
    words = ["--per_device_train_batch_size", size, "--gradient_accumulation_steps", "2", "--max_steps", "2"]
    words += ["--shuffle_dataset", "false"] if is_policy else ["--train_sampling_strategy", "sequential"]
    words += ["--save_strategy", "no"]
    caplog.set_level(logging.WARNING)
    for number, change in enumerate((lambda loss: loss * torch.nan, NanGradient.apply)):
        caplog.clear()
        with monkeypatch.context() as patch:
            spoil(patch, [1], change)
            state = start(method, base, data, tmp_path / str(number), *words)
        assert state["global_step"] == 2
        [warning] = lines_of(caplog.text, "is not finite")
        what = "the norm of the gradient" if number else "the loss"
        expected = {False: ("2", "1, 2"), True: ("3, 4", "1, 2, 3, 4")}[is_policy][number]
        assert warning.startswith(
            f"step 1: {what} is not finite; rows: {data} line {expected}. It is not applied (1 so"
        )


def test_a_run_that_has_nothing_else_ends_with_a_checkpoint(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After three in a row; two, and a finite one between, do not count. The same command goes on from there."""
    words = ["sft", "--model_name_or_path", str(base), "--dataset_name", str(rows), "--output_dir", str(tmp_path / "a")]
    words += ["--cache_dir", str(tmp_path / "cache"), "--max_nonfinite_steps", "3", "--max_steps", "9"]
    words += [
        "--per_device_train_batch_size",
        "1",
        "--save_strategy",
        "no",
        "--logging_steps",
        "1",
        "--report_to",
        "none",
    ]
    words += ["--train_sampling_strategy", "sequential", "--disable_tqdm", "true"]
    with monkeypatch.context() as patch:
        spoil(patch, [2, 3, 5, 6, 7])
        assert main(words) == 1
    said = capsys.readouterr().err
    point = tmp_path / "a" / "checkpoint-7"
    assert "3 steps in a row were not finite" in said and str(point) in said and "More: docs/troubleshooting" in said
    assert f"The last one was step 7: the loss is not finite; rows: {rows} line 7." in said
    assert f"The rows of all of them: {rows} line 5, 6, 7." in said
    state = json.loads((point / "trainer_state.json").read_text())
    assert state["log_history"][-1]["nonfinite_steps"] == 5
    assert all(value.isfinite().all() for value in load_file(point / "model.safetensors").values())
    assert not (tmp_path / "a" / "model.safetensors").exists()

    with monkeypatch.context() as patch:
        spoil(patch, [8])  # not the fourth one of the same row
        assert main(words) == 0
    state = json.loads((tmp_path / "a" / "trainer_state.json").read_text())
    assert state["global_step"] == 9 and state["log_history"][-1]["nonfinite_steps"] == 6


def test_the_checkpoint_that_is_named_is_not_removed_for_the_best_one(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(monkeypatch, [2, 3])
    words = ["--eval_strategy", "steps", "--eval_steps", "1", "--test_split_size", "4", "--save_strategy", "steps"]
    words += ["--save_steps", "1", "--load_best_model_at_end", "--save_total_limit", "1", "--max_nonfinite_steps", "2"]
    with pytest.raises(AssertionError):
        run("sft", base, rows, tmp_path / "out", *STEPS, *words)
    assert f"{tmp_path / 'out' / 'checkpoint-3'} holds the model" in capsys.readouterr().err
    assert (tmp_path / "out" / "checkpoint-3" / "model.safetensors").is_file()


def test_what_has_been_counted_goes_on_from_a_checkpoint(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, [2, 5])
    words = ["--max_steps", "6", "--save_strategy", "steps", "--save_steps", "3", "--logging_steps", "6"]
    whole = run("sft", base, rows, tmp_path / "a", *words, "--per_device_train_batch_size", "2")
    shutil.copytree(tmp_path / "a" / "checkpoint-3", tmp_path / "b" / "checkpoint-3")
    path = ["--resume_from_checkpoint", str(tmp_path / "b" / "checkpoint-3")]
    resumed = run("sft", base, rows, tmp_path / "b", *words, "--per_device_train_batch_size", "2", *path)
    names = ("loss", "entropy", "nonfinite_steps")
    assert curve(resumed, *names) == curve(whole, *names) != []
    assert resumed["log_history"][-1]["train_loss"] == whole["log_history"][-1]["train_loss"]


def test_evaluation_that_is_not_finite_is_reported_and_never_the_best(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(NotFinite, "AT_ONCE", 2)
    plain, named = SFT.loss, []

    def loss(self: SFT, batch: PackedBatch, statistics: TokenStatistics) -> Loss:
        if not torch.is_grad_enabled() and len(named) < 4:
            named.append(batch.places)
            if len(named) == 2:  # the second of four batches, the first time
                statistics = statistics._replace(logprobs=statistics.logprobs * torch.nan)
        return plain(self, batch, statistics)

    monkeypatch.setattr(SFT, "loss", loss)
    words = ["--eval_strategy", "steps", "--eval_steps", "1", "--test_split_size", "4", "--save_strategy", "steps"]
    words += [
        "--per_device_eval_batch_size",
        "1",
        "--save_steps",
        "1",
        "--load_best_model_at_end",
        "--save_total_limit",
        "1",
    ]
    caplog.set_level(logging.WARNING)
    state = run("sft", base, rows, tmp_path / "out", *STEPS, *words)
    [warning] = lines_of(caplog.text, "not finite")
    assert warning.startswith(f"step 1: not finite: eval_loss; rows: {named[1][0]} (docs/troubleshooting.md#numbers)")
    losses = [line["eval_loss"] for line in state["log_history"] if "eval_loss" in line]
    assert math.isnan(losses[0]) and state["best_metric"] == min(losses[1:])


def test_what_a_skipped_step_has_left_in_a_method_is_forgotten(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entropy that GRPO's coefficient follows is that of steps that were applied."""
    plain, coefficients = GRPO.loss, []

    def loss(self: GRPO, batch: PackedBatch, statistics: TokenStatistics) -> Loss:
        if torch.is_grad_enabled() and len(coefficients) == 1:
            statistics = statistics._replace(entropy=statistics.entropy * torch.nan)
        return plain(self, batch, statistics)

    adapt = GRPO.adapt_entropy

    def adapt_entropy(self: GRPO) -> None:
        adapt(self)
        coefficients.append((self.entropy_coef, self.last_entropy))

    monkeypatch.setattr(GRPO, "loss", loss)
    monkeypatch.setattr(GRPO, "adapt_entropy", adapt_entropy)
    words = ["--use_adaptive_entropy", "--entropy_target", "9", "--entropy_coef", "0.01"]
    state = run_policy("grpo", base, write_prompts(tmp_path / "rows.jsonl"), tmp_path / "out", *words)
    assert state["log_history"][-1]["nonfinite_steps"] == 1
    assert coefficients[0] == coefficients[1] != coefficients[2]
    assert all(math.isfinite(value) for pair in coefficients for value in pair)
