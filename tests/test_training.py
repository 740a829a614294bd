"""Runs from the command line to the finished folder: what does not matter to a step, and what is left behind."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import curve, run, write_base, write_preference, write_sft
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain import training
from posttrain.provenance import deterministic
from posttrain.reference import Reference


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "model")


def geometry(batch: int, accumulation: int) -> list[str]:
    return ["--per_device_train_batch_size", str(batch), "--gradient_accumulation_steps", str(accumulation)]


METRICS = {
    "sft": ["mean_token_accuracy", "entropy"],
    "dpo": ["mean_token_accuracy", "entropy"],
    "reward": ["margin", "min_reward", "max_reward", "brier_score", "calibration_error"],
}


@pytest.mark.parametrize("method", METRICS)
def test_a_step_does_not_depend_on_how_it_is_cut(method: str, base: Path, tmp_path: Path) -> None:
    """8 x 1, 4 x 2 and 1 x 8 rows a step: one loss, one gradient, one set of metrics; rows differ in length."""
    data = (write_sft if method == "sft" else write_preference)(tmp_path / "rows.jsonl")
    names = ["loss", "grad_norm", "num_tokens", *METRICS[method]]
    extra = ["--loss_type", "sigmoid", "sft"] if method == "dpo" else []
    states = [
        run(method, base, data, tmp_path / f"{batch}x{accumulation}", *geometry(batch, accumulation), *extra)
        for batch, accumulation in [(8, 1), (4, 2), (1, 8)]
    ]
    whole = torch.tensor(curve(states[0], *names))
    assert whole.shape == (3, len(names))
    assert (whole[0, :2] - whole[2, :2]).abs().max() > 1e-3, "training changed nothing"
    for state in states[1:]:
        torch.testing.assert_close(torch.tensor(curve(state, *names)), whole, rtol=2e-4, atol=1e-5)


def test_packing_gives_the_same_step(base: Path, tmp_path: Path) -> None:
    """All rows in one batch, as 16 documents or as a few packed rows: the same loss and gradient."""
    data = write_sft(tmp_path / "rows.jsonl")
    words = [*geometry(16, 1), "--max_length", "128"]
    plain = curve(run("sft", base, data, tmp_path / "plain", *words), "loss", "grad_norm", "num_tokens")
    packed = curve(run("sft", base, data, tmp_path / "packed", *words, "--packing"), "loss", "grad_norm", "num_tokens")
    torch.testing.assert_close(torch.tensor(packed), torch.tensor(plain), rtol=1e-4, atol=1e-5)


def test_the_same_run_twice_is_the_same_to_the_bit(base: Path, tmp_path: Path) -> None:
    data = write_preference(tmp_path / "rows.jsonl")
    for name in ("a", "b"):
        run(
            "dpo",
            base,
            data,
            tmp_path / name,
            "--eval_strategy",
            "steps",
            "--eval_steps",
            "2",
            "--test_split_size",
            "0.25",
        )
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert "model.safetensors" in files and "training_args.bin" not in files
    for name in files:
        if name == "provenance.json":
            a, b = (json.loads((tmp_path / side / name).read_text()) for side in "ab")
            assert deterministic(a) == deterministic(b)
        elif (tmp_path / "a" / name).is_file():
            a, b = ((tmp_path / side / name).read_bytes() for side in "ab")
            assert a.replace(b"/a", b"/b") == b.replace(b"/a", b"/b"), name


@pytest.mark.parametrize("method", METRICS)
def test_a_run_goes_on_from_a_checkpoint(method: str, base: Path, tmp_path: Path) -> None:
    """Eight steps, and the last five of them from the third's checkpoint, in the middle of an epoch: the same bytes."""
    data = (write_sft if method == "sft" else write_preference)(tmp_path / "rows.jsonl")
    words = ["--max_steps", "8", "--save_strategy", "steps", "--save_steps", "3", *geometry(3, 1)]
    whole = run(method, base, data, tmp_path / "a", *words)
    shutil.copytree(tmp_path / "a" / "checkpoint-3", tmp_path / "b" / "checkpoint-3")
    resumed = run(method, base, data, tmp_path / "b", *words, "--resume_from_checkpoint")
    assert curve(resumed, "loss", "grad_norm", "num_tokens") == curve(whole, "loss", "grad_norm", "num_tokens")
    weights = [(tmp_path / side / "model.safetensors").read_bytes() for side in "ab"]
    assert weights[0] == weights[1]


def test_full_determinism_begins_before_anything_is_multiplied(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cuBLAS looks at its variable once, at the first product, which is that of a trial."""
    for name in ("CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG", "FLASH_ATTENTION_DETERMINISTIC"):
        monkeypatch.setenv(name, "")  # put back as it was
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    seen = []

    def noted(*args: Any) -> Any:
        seen.append((os.environ["CUBLAS_WORKSPACE_CONFIG"], torch.are_deterministic_algorithms_enabled()))
        return load(*args)

    load = training._load
    monkeypatch.setattr(training, "_load", noted)
    try:
        run("sft", base, write_sft(tmp_path / "rows.jsonl"), tmp_path / "out", "--full_determinism", "--max_steps", "1")
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen == [(":16:8", True)]


def test_what_a_run_leaves(base: Path, tmp_path: Path) -> None:
    """A model that transformers loads, its tokenizer, the trainer's state, metrics and the curve."""
    data = write_sft(tmp_path / "rows.jsonl")
    metrics_file, plots_file = tmp_path / "metrics" / "sft.json", tmp_path / "plots" / "sft.csv"
    files = ["--metrics_file", str(metrics_file), "--plots_file", str(plots_file)]
    evaluation = ["--eval_strategy", "steps", "--eval_steps", "2", "--test_split_size", "0.25"]
    state = run("sft", base, data, tmp_path / "out", *files, *evaluation)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.config.eos_token_id == tokenizer.eos_token_id != tokenizer.pad_token_id
    assert "posttrain" not in (tmp_path / "out" / "config.json").read_text()
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)

    assert state["global_step"] == 3
    assert len(curve(state, "loss", "grad_norm")) == 3
    # Evaluated at step 2, and at the end because step 3 was not.
    assert len(curve(state, "eval_loss", "eval_mean_token_accuracy")) == 2
    metrics = json.loads(metrics_file.read_text())
    assert {"loss", "eval_loss", "tokens_per_second", "peak_memory_mib", "data/rows"} <= metrics.keys()
    assert metrics["tokens_per_second"] > 0
    header, *rows = plots_file.read_text().splitlines()
    assert len(rows) == 3 and {"step", "loss", "eval_loss"} <= set(header.split(","))
    assert "tokens_per_second" not in header


def test_evaluation_is_the_mean_over_all_targets(base: Path, tmp_path: Path) -> None:
    """The same loss whatever the evaluation batch, and that of the plain model on the same rows."""
    data = write_sft(tmp_path / "rows.jsonl", count=6)
    folder = tmp_path / "both"
    folder.mkdir()
    (folder / "train.jsonl").write_text(data.read_text())
    (folder / "test.jsonl").write_text(data.read_text())
    losses = []
    for size in ("1", "4", "6"):
        words = ["--eval_strategy", "steps", "--per_device_eval_batch_size", size, "--learning_rate", "0"]
        state = run(
            "sft", base, folder, tmp_path / size, *words, *geometry(6, 1), "--max_steps", "1", "--eval_steps", "1"
        )
        losses.append(curve(state, "eval_loss")[0][0])
        assert losses[-1] == pytest.approx(curve(state, "loss")[0][0], rel=1e-5)
    assert losses == [pytest.approx(losses[0], rel=1e-5)] * 3


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)  # the test's own peft call
def test_lora_trains_the_adapter_alone(base: Path, tmp_path: Path) -> None:
    """The folder holds an adapter; the reference is the bare model, so the first loss is that of equal models."""
    from peft import AutoPeftModelForCausalLM

    data = write_preference(tmp_path / "rows.jsonl")
    state = run("dpo", base, data, tmp_path / "out", "--use_peft", "--lora_r", "4", *geometry(16, 1))
    losses = curve(state, "loss")
    assert losses[0][0] == pytest.approx(0.693147, abs=1e-5)
    assert losses[-1][0] < losses[0][0] - 1e-3
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    # An adapter's folder is a model to start from: it is merged into its base.
    again = run("dpo", tmp_path / "out", data, tmp_path / "again", *geometry(16, 1), "--max_steps", "1")
    assert curve(again, "loss")[0][0] == pytest.approx(0.693147, abs=1e-5)
    assert (tmp_path / "again" / "model.safetensors").is_file()
    # An adapter in a folder that held a whole model takes the model's place.
    anew = ["--max_steps", "1", "--resume_from_checkpoint", "false"]
    run("dpo", base, data, tmp_path / "again", "--use_peft", *geometry(16, 1), *anew)
    assert not (tmp_path / "again" / "model.safetensors").exists()
    assert (tmp_path / "again" / "adapter_model.safetensors").is_file()


def test_precomputed_reference_is_that_of_the_reference_model(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same curve as with the model at hand; and a second run, with another beta, computes nothing anew."""
    import posttrain.reference

    other = write_base(tmp_path / "other", seed=2)
    data = write_preference(tmp_path / "rows.jsonl")
    words = ["--ref_model_name_or_path", str(other), *geometry(4, 1)]
    live = curve(run("dpo", base, data, tmp_path / "live", *words), "loss", "rewards/margins")
    stored = curve(
        run("dpo", base, data, tmp_path / "a", *words, "--precompute_ref_log_probs"), "loss", "rewards/margins"
    )
    torch.testing.assert_close(torch.tensor(stored), torch.tensor(live), rtol=1e-5, atol=1e-5)
    assert abs(live[0][0] - 0.693147) > 1e-3, "the other model says the same as the policy"

    def refuse(*args: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(posttrain.reference, "_store_logprobs", refuse)
    run("dpo", base, data, tmp_path / "b", *words, "--precompute_ref_log_probs", "--beta", "0.5")
    with pytest.raises(AssertionError, match="computed again"):
        run("dpo", base, data, tmp_path / "c", "--precompute_ref_log_probs")  # another reference: the policy itself


def test_sync_moves_the_reference(base: Path, tmp_path: Path) -> None:
    """With the whole policy copied after every step, policy and reference agree at the start of each step."""
    data = write_preference(tmp_path / "rows.jsonl")
    words = ["--sync_ref_model", "--ref_model_mixup_alpha", "1.0", "--ref_model_sync_steps", "1"]
    state = run("dpo", base, data, tmp_path / "out", *words, *geometry(16, 1))
    assert [margin for (margin,) in curve(state, "rewards/margins")] == [pytest.approx(0, abs=1e-5)] * 3
    without = run("dpo", base, data, tmp_path / "without", *geometry(16, 1))
    assert curve(without, "rewards/margins")[-1][0] > 1e-2


def test_padded_attention_gives_the_same_run(base: Path, tmp_path: Path) -> None:
    """`--attn_implementation eager` pads; same curve, same weights to rounding."""
    data = write_preference(tmp_path / "rows.jsonl")
    packed = curve(run("dpo", base, data, tmp_path / "packed", *geometry(8, 1)), "loss", "grad_norm")
    words = ["--attn_implementation", "eager"]
    padded = curve(run("dpo", base, data, tmp_path / "padded", *geometry(8, 1), *words), "loss", "grad_norm")
    torch.testing.assert_close(torch.tensor(padded), torch.tensor(packed), rtol=1e-4, atol=1e-5)
    frozen = Reference.frozen_copy(
        AutoModelForCausalLM.from_pretrained(base), torch.device("cpu"), packed=False, spread=False
    )
    assert not frozen.scorer.packed
