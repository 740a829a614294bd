"""Plans of long rows and of much data, of every method, and of what is computed again where memory is short."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from planned_models import ROWS, activations_counted_once, planned, write_known
from tiny import write_rows


@pytest.fixture(scope="module", autouse=True)
def counted_once() -> Iterator[None]:
    with activations_counted_once():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models without weights, and rows of every kind."""
    return write_known(tmp_path_factory.mktemp("plans"))


@pytest.fixture(scope="module")
def words(folder: Path) -> str:
    """The flags of a run on rows of 32,768 tokens."""
    data = write_rows(folder / "long.jsonl", [{"input_ids": [5] * 32768} for _ in range(8)])
    return f"--dataset_name {data} --max_length 32768 --per_device_train_batch_size 1 --use_peft --max_steps 100"


def test_long_contexts_are_planned_quickly(folder: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "long.jsonl", [{"input_ids": [5] * 40_000} for _ in range(8)])
    words = f"--dataset_name {data} --max_length 32768 --per_device_train_batch_size 1 --use_peft --max_steps 100"
    words += " --lora_target_modules q_proj v_proj"
    began = time.perf_counter()
    found = planned(folder, "sft", "llama-8b", words, gpu="h200")
    assert time.perf_counter() - began < 10
    assert found.steps.largest.tokens == 32768
    assert found.fits
    assert found.longest_row is not None
    assert found.longest_row > 32768
    assert not planned(folder, "sft", "llama-8b", f"{words} --no_gradient_checkpointing", gpu="h200").fits
    assert any("cuts 8 of 8 rows" in finding.text for finding in found.findings)


def test_ten_million_rows_are_planned_without_reading_them(folder: Path, tmp_path: Path) -> None:
    number = 10_000_000
    words = pa.DictionaryArray.from_arrays(pa.array(np.zeros(number, np.int8)), pa.array(["Ada has 3 apples."]))
    pyarrow.parquet.write_table(pa.table({"text": words}), tmp_path / "rows.parquet")
    began = time.perf_counter()
    flags = f"--dataset_name {tmp_path / 'rows.parquet'} --per_device_train_batch_size 8 --num_train_epochs 1"
    found = planned(folder, "sft", "qwen2-0.5b", flags, gpu="h100", most_rows=1000)
    assert time.perf_counter() - began < 10
    assert found.rows.kept == number
    assert found.rows.looked_at == 1000
    assert found.steps.number == number // 8
    assert any("first 1,000" in text for text in found.assumptions)
    needed = found.rows.preparation
    assert needed is not None and needed.disk == pytest.approx(found.disk.cache, rel=1e-3)
    assert found.time.start > needed.seconds > 0
    packed = planned(folder, "sft", "qwen2-0.5b", f"{flags} --packing --dataset_num_proc 1", gpu="h100", most_rows=1000)
    assert packed.rows.preparation is not None and packed.rows.preparation.processes == 1
    assert packed.rows.preparation.disk == packed.disk.cache + packed.disk.preparing > 1.5 * packed.disk.cache  # twice
    assert packed.disk.total >= packed.rows.preparation.disk
    assert packed.rows.preparation.memory > needed.memory


def test_streamed_rows_of_unknown_number(folder: Path) -> None:
    found = planned(folder, "sft", "qwen2-0.5b", "--dataset_streaming --max_steps 50", most_rows=10)
    assert (found.steps.number, found.rows.looked_at) == (50, 10)
    assert found.disk.cache == 0


def test_every_method_is_planned_and_is_plain_data(folder: Path) -> None:
    for method in ROWS:
        found = planned(folder, method, "qwen2-0.5b", "--max_steps 4", gpu="a100-80gb")
        plain = json.loads(json.dumps(found.to_json()))
        assert plain["steps"]["number"] == 4
        assert plain["fits"]
        assert plain["time"]["total"] > 0


def test_what_is_computed_again_is_planned(folder: Path, words: str) -> None:
    """The more, the less memory and the more time; offloaded, the inputs of layers are on the GPU no more."""
    ways = ["--no_gradient_checkpointing", "--recompute elementwise", "--recompute all_but_attention", ""]
    found = [planned(folder, "sft", "llama-8b", f"{words} {way}", gpu="h200") for way in ways]
    assert [one.peak for one in found] == sorted((one.peak for one in found), reverse=True)
    assert [one.time.step for one in found] == sorted(one.time.step for one in found)
    assert found[2].decided["activations"] == "recomputed but for attention (as the flags say)"
    tokens, layers, hidden = 32768, 32, 4096
    # Outputs of attention in bfloat16, and one of the two tensors' width.
    assert found[2].memory.peak - found[3].memory.peak == pytest.approx(2 * tokens * layers * hidden)
    every = planned(folder, "sft", "llama-8b", f"{words} --gradient_checkpointing_kwargs every_n_layers=2", gpu="h200")
    assert found[3].peak < every.peak < found[0].peak
    offloaded = planned(folder, "sft", "llama-8b", f"{words} --activation_offloading", gpu="h200")
    # Inputs in float32, but for those of three layers, which are under way.
    assert found[3].memory.peak - offloaded.memory.peak == pytest.approx(4 * tokens * (layers - 3) * hidden)
    kept = planned(
        folder, "sft", "llama-8b", f"{words} --no_gradient_checkpointing --activation_offloading", gpu="h200"
    )
    assert kept.peak < found[0].peak


def test_a_run_that_does_not_fit_is_told_the_next_rung(folder: Path, words: str) -> None:
    for more, advised in (
        ("--no_gradient_checkpointing", "--gradient_checkpointing"),
        ("--recompute elementwise", "--recompute layers"),
        ("", "--activation_offloading"),
    ):
        found = planned(folder, "sft", "llama-8b", f"{words} --dtype bfloat16 {more}", gpu="rtx4090")
        assert not found.fits
        assert found.findings[0].flags == tuple(advised.split())
