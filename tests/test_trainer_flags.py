"""Flags of transformers on packed batches, and its complaints about arguments before any weight is loaded."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset
from tiny import curve, run, run_policy, write_base, write_preference, write_prompts, write_sft
from torch import nn

from posttrain import training
from posttrain.arguments import checked_arguments
from posttrain.batch import NO_PARENT, pack
from posttrain.cli import main
from posttrain.config import parse_command_line
from posttrain.errors import UserError
from posttrain.scoring import Scorer
from posttrain.trainer_flags import EmbeddingNoise, LengthGroups, Shuffled, tokens_of_sequences, with_lengths


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "model")


# A document of 5 tokens; a prompt of 3 with answers of 2 and 6: sequences of 5, 5 and 9 tokens.
LENGTHS, PARENTS = (5, 3, 2, 6), (NO_PARENT, NO_PARENT, 1, 1)


def batch() -> Any:
    ids = [np.arange(n) + 3 for n in LENGTHS]
    masks = [np.full(n, i > 1, dtype=np.int8) for i, n in enumerate(LENGTHS)]
    return pack(ids, masks, PARENTS, num_groups=2)


def test_the_tokens_of_the_longest_sequence_that_a_token_is_part_of() -> None:
    assert tokens_of_sequences(batch()).tolist() == [5] * 5 + [9] * 3 + [5] * 2 + [9] * 6


def test_noise_is_scaled_by_each_sequence_and_stands_in_training_steps_only() -> None:
    """alpha / sqrt(L · H), uniform: alpha 3, H 4 and L 9 give 0.5; the variance of the uniform is a third of that²."""
    model = nn.Module()
    table = nn.Embedding(20, 4)
    model.get_input_embeddings = lambda: table  # type: ignore[assignment]
    noise = EmbeddingNoise(3.0)
    noise.attach(model)
    row = batch()
    clean = nn.functional.embedding(row.input_ids[None], table.weight)
    torch.testing.assert_close(table(row.input_ids[None]), clean)  # no step under way
    noise.batch = row
    drawn = torch.stack([table(row.input_ids[None]) - clean for _ in range(400)])[:, 0]
    bound = 3 / torch.sqrt(torch.tensor(tokens_of_sequences(row)) * 4.0)
    assert (drawn.abs() <= bound[None, :, None] + 1e-6).all()
    torch.testing.assert_close(drawn.pow(2).mean((0, 2)), bound**2 / 3, rtol=0.15, atol=0)
    padded = row.padded().input_ids
    spread = torch.stack([table(padded) - nn.functional.embedding(padded, table.weight) for _ in range(200)])
    assert spread.abs().max().item() == pytest.approx(3 / math.sqrt(padded.shape[1] * 4), rel=0.01)
    table.eval()
    torch.testing.assert_close(table(row.input_ids[None]), clean)


def test_neftune_changes_training_and_not_evaluation(base: Path, tmp_path: Path) -> None:
    rows = write_preference(tmp_path / "rows.jsonl")
    words = ["--eval_on_start", "--eval_strategy", "steps", "--test_split_size", "4"]
    plain = run("dpo", base, rows, tmp_path / "a", *words)
    noisy = run("dpo", base, rows, tmp_path / "b", *words, "--neftune_noise_alpha", "5")
    assert curve(plain, "eval_loss")[0] == curve(noisy, "eval_loss")[0] == [pytest.approx(math.log(2), abs=1e-6)]
    assert curve(plain, "loss")[0] == [pytest.approx(math.log(2), abs=1e-6)] != curve(noisy, "loss")[0]


def test_lengths_of_rows() -> None:
    pairs = Dataset.from_dict({"prompt_ids": [[1, 2], []], "chosen_ids": [[3], [4, 5]], "rejected_ids": [[6], [7]]})
    assert with_lengths(pairs, "length")["length"] == [4, 3]
    texts = Dataset.from_dict({"input_ids": [[1], [1, 2, 3], [1, 2]], "n": [0, 0, 0]})
    assert with_lengths(texts.select([2, 1]), "n")["n"] == [2, 3]


@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance", "sequential"])
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_orders_of_rows(method: str, strategy: str, base: Path, tmp_path: Path) -> None:
    rows = (write_sft if method == "sft" else write_preference)(tmp_path / "rows.jsonl")
    words = ["--train_sampling_strategy", strategy, "--per_device_train_batch_size", "4"]
    state = run(method, base, rows, tmp_path / "out", *words, "--test_split_size", "4", "--do_eval")
    assert state["log_history"][-1]["step"] == 3
    if strategy == "sequential":  # the first four of the rows that are not held out, seed or none
        again = run(method, base, rows, tmp_path / "again", *words, "--test_split_size", "4", "--data_seed", "5")
        assert curve(again, "num_tokens") == curve(state, "num_tokens")


@pytest.mark.parametrize("method", ["sft", "rloo"])
def test_tokens_that_were_read_are_counted(method: str, base: Path, tmp_path: Path) -> None:
    flags = ["--include_num_input_tokens_seen", "--max_steps", "2"]
    if method == "sft":
        state = run(method, base, write_sft(tmp_path / "rows.jsonl"), tmp_path / "out", *flags)
    else:
        state = run_policy(method, base, write_prompts(tmp_path / "rows.jsonl"), tmp_path / "out", *flags)
    lines = [line for line in state["log_history"] if "loss" in line]
    assert [line["num_input_tokens_seen"] for line in lines] == [line["num_tokens"] for line in lines]


def test_a_batch_size_that_fits_is_found(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for four rows: the step of eight fails, and the run is that of a batch of four."""
    rows = write_sft(tmp_path / "rows.jsonl")
    four = run("sft", base, rows, tmp_path / "four", "--per_device_train_batch_size", "4")
    score = Scorer.__call__

    def small(self: Scorer, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if inputs.num_groups > 4:
            raise RuntimeError("CUDA out of memory.")
        return score(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(Scorer, "__call__", small)
    found = run("sft", base, rows, tmp_path / "found", "--auto_find_batch_size")
    assert curve(found, "loss") == curve(four, "loss")


def test_the_best_checkpoint_is_what_is_left(base: Path, tmp_path: Path) -> None:
    """A learning rate that ruins the model after the first step; no path stands in what is left."""
    words = "--learning_rate 2 --lr_scheduler_type constant --eval_strategy steps --eval_steps 1 --test_split_size 4"
    words += " --load_best_model_at_end --save_strategy steps --save_steps 1 --max_grad_norm 0 --eval_on_start"
    rows = write_sft(tmp_path / "rows.jsonl")
    state = run("sft", base, rows, tmp_path / "out", *words.split())
    best = min(loss for (loss,) in curve(state, "eval_loss")[1:])
    assert state["best_metric"] == pytest.approx(best) and str(tmp_path) not in json.dumps(state)
    again = run(
        "sft", tmp_path / "out", rows, tmp_path / "again", *words.split()[4:6], "--eval_on_start", *words.split()[6:10]
    )
    assert curve(again, "eval_loss")[0] == [pytest.approx(best, rel=1e-5)]


def test_a_metric_that_there_is_not(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--load_best_model_at_end --metric_for_best_model accuracy --eval_strategy steps --eval_steps 500"
    words += f" --test_split_size 4 --output_dir {tmp_path / 'out'} --max_steps 1 --eval_on_start --report_to none"
    rows = write_sft(tmp_path / "rows.jsonl")
    assert main(["sft", "--model_name_or_path", str(base), "--dataset_name", str(rows), *words.split()]) == 2
    assert "--metric_for_best_model accuracy: evaluation has no such metric, but entropy, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--optim adamw_bnb_8bit", "--optim adamw_bnb_8bit: You need to install `bitsandbytes`"),
        ("--optim galore_adamw --optim_target_modules all-linear", "You need to install `galore_torch`"),
        ("--optim lomo", "--optim lomo: You need to install `lomo_optim`"),
        ("--optim adamw_anyprecision", "--optim adamw_anyprecision: Please install"),
        ("--lr_scheduler_type cosine_with_min_lr", "One of min_lr or min_lr_rate should be set"),
        ("--lr_scheduler_type cosine --lr_scheduler_kwargs cycles=1", "unexpected keyword argument 'cycles'"),
        ("--lr_scheduler_type warmup_stable_decay", "missing 1 required positional argument: 'num_decay_steps'"),
        ("--accelerator_config dispatch_batches=true", "dispatch_batches is not available: each process reads its own"),
        ("--accelerator_config split=true", "unexpected keyword argument 'split'"),
        ("--optim sgd --optim_args momentum=x", "--optim sgd: "),
        ("--torch_compile_backend inducter", "--torch_compile_backend: 'inducter' is not one of no, eager, "),
        ("--deepspeed ds.json", "--deepspeed needs a package that is not installed: pip install -e '.[deepspeed]'"),
    ],
)
def test_what_transformers_would_complain_about_is_told_first(
    words: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # nothing that may be installed or not
    monkeypatch.setattr("transformers.trainer_optimizer.is_bitsandbytes_available", lambda: False)
    names = f"--model_name_or_path m --dataset_name d --output_dir {tmp_path} --report_to none "
    config = parse_command_line("sft", (names + words).split())[0]
    with pytest.raises(UserError) as caught:
        training.training_arguments(config)
    assert expected in str(caught.value)


def test_a_run_begins_with_a_line_about_flags_without_effect(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_sft(tmp_path / "rows.jsonl")
    run("sft", base, rows, tmp_path / "a", "--max_steps", "1", "--padding_free", "--log_level", "error")
    assert "Without effect" not in capsys.readouterr().err
    run("sft", base, rows, tmp_path / "b", "--max_steps", "1", "--padding_free")
    assert "Without effect here: padding_free (batches never hold padding)" in capsys.readouterr().err


def test_a_loader_can_pin_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self.clone())
    row = batch()
    again = torch.utils.data._utils.pin_memory.pin_memory(row)
    assert {id(one) for one in pinned} == {id(one) for one in vars(row).values() if isinstance(one, torch.Tensor)}
    assert again.input_ids is not row.input_ids and again.segments is row.segments


def test_a_backend_has_nobody_to_talk_to_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    values = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none"}
    assert checked_arguments(values | {"ddp_backend": "gloo"}, {}).world_size == 1


def test_schedules_that_take_settings(tmp_path: Path) -> None:
    values = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none"}
    for name, settings in (("warmup_stable_decay", {"num_decay_steps": 5}), ("cosine_with_min_lr", {"min_lr": 1e-6})):
        assert checked_arguments(values | {"lr_scheduler_type": name, "lr_scheduler_kwargs": settings}, {})


@pytest.mark.parametrize("seed", [None, 5])
def test_rows_are_shuffled_as_accelerate_does(seed: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.trainer_flags._PIECE", 4)
    torch.manual_seed(11)
    theirs, own = SeedableRandomSampler(range(13), data_seed=seed), Shuffled(range(13), seed)
    for epoch in range(3):
        theirs.set_epoch(epoch)
        own.set_epoch(epoch)
        assert list(own) == list(theirs)
    assert len(own) == 13


def test_rows_by_length_in_an_order_of_the_seed_and_the_epoch() -> None:
    lengths = list(range(100))
    order = LengthGroups(lengths, together=10, seed=1)
    first = list(order)
    torch.rand(7)  # whatever else is drawn
    assert list(order) == first
    assert sorted(first) == lengths
    longest = [[lengths[row] for row in first[i : i + 10]] for i in range(0, 100, 10)]
    assert all(part == sorted(part, reverse=True) for part in longest[1:])
    order.set_epoch(1)
    second = list(order)
    assert second != first
    assert list(LengthGroups(lengths, together=10, seed=2)) not in (first, second)
