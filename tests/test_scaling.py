"""What a shared prompt gains by the formula, counted by hand; and that benchmarks/scaling measures."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posttrain.batch import NO_PARENT, pack
from posttrain.planning.activations import Saved
from posttrain.planning.memory import Setting
from posttrain.planning.shape import ModelShape
from posttrain.planning.sharing import load_of_group, memory_gain, speed_gain

ROOT = Path(__file__).resolve().parents[1]
SHAPE = ModelShape(
    name="by hand",
    kind="none",
    num_parameters=1,
    num_trained=1,
    weight_bytes=0,
    trained_bytes=0,
    per_token=10,
    head=5,
    laid_out=0,
    vocabulary=5,
    hidden=1,
    layers=2,
    query=1,
    key=1,
    inner=1,
    positions=None,
    number=4,
    by_segments=True,
    saved=Saved(100.0, 10.0, 0.0, 0.0, True),
)
SETTING = Setting(False, False, 1, 1, frozenset(), "adamw_torch", False)


def test_operations_of_a_prompt_of_4_tokens_with_3_completions_of_2() -> None:
    # shared: 4 + 3 · 2 tokens; the prompt's see 1 + 2 + 3 + 4, each completion's 5 + 6. Repeated: 3 rows that see 21.
    shared = 6 * 10 * 10 + 14 * (1 * 2) * (10 + 3 * 11) + 6 * 5 * 6
    repeated = 6 * 10 * 18 + 14 * (1 * 2) * 3 * 21 + 6 * 5 * 6
    assert (shared, repeated) == (1984, 3024)
    assert speed_gain(SHAPE, 4, 2, 3) == repeated / shared


def test_memory_of_a_prompt_of_4_tokens_with_3_completions_of_2() -> None:
    # Keys and values (a number of 4 bytes each) of a prompt are copied beside those of each completion: 3 · 6 of them.
    shared = 2 * (100 * 10 + 2 * 4 * 18) + 10 * 10
    repeated = 2 * 100 * 18 + 10 * 18
    assert memory_gain(dataclasses.replace(SHAPE, head=0), SETTING, 4, 2, 3) == repeated / shared


@pytest.mark.parametrize("shared", [True, False])
def test_what_is_counted_is_what_the_batch_holds(shared: bool) -> None:
    prompt, completion, group = 7, 3, 4
    ids, parents = [np.arange(prompt)] + [np.arange(completion)] * group, [NO_PARENT] + [0] * group
    if not shared:
        ids, parents = [np.arange(prompt + completion)] * group, [NO_PARENT] * group
    masks = [np.arange(len(row)) >= len(row) - completion for row in ids]
    masks[0] &= not shared
    batch, load = pack(ids, masks, parents, num_groups=1), load_of_group(prompt, completion, group, shared)
    segments = zip(batch.segments.lengths, batch.segments.key_lengths, strict=True)
    seen = [int(batch.segments.mask(own, keys, None, batch.input_ids.device).sum()) for own, keys in segments]
    assert load.tokens == len(batch.input_ids)
    assert load.targets == batch.num_targets
    assert load.pairs == sum(seen)
    assert load.unshared == batch.num_tokens


def test_nothing_is_gained_without_a_prompt_or_with_one_completion() -> None:
    assert speed_gain(SHAPE, 0, 8, 16) == memory_gain(SHAPE, SETTING, 0, 8, 16) == 1
    assert speed_gain(SHAPE, 8, 8, 1) == 1


def test_the_page_shows_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.scaling.tables import all_tables

    results = json.loads((ROOT / "benchmarks/scaling/results.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
    shown = all_tables(results)
    assert len(shown) > 8
    assert [title for title, table in shown.items() if table not in page] == []


def test_it_measures_a_run_sampling_and_a_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from transformers.utils import logging

    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.scaling.__main__ import main

    file = tmp_path / "results.json"
    words = f"scaling --smallest --cores 1 --rounds 1 --seconds 0.01 --parts batch sampling prefix --to {file}"
    monkeypatch.setattr(sys, "argv", words.split())
    try:
        main()
    finally:
        logging.enable_progress_bar()
    parts = json.loads(file.read_text(encoding="utf-8"))["parts"]
    [run] = parts["batch"]["measured"]
    assert run["tokens"] == 2 * 16
    assert run["processor_seconds"][0] > 0
    assert run["before"] < run["peak"]
    assert {one["prompt"] for one in parts["sampling"]["measured"]} == {8, 16}
    one, two = parts["prefix"]["measured"]
    assert (one["speed_predicted"], two["memory_predicted"] > 1) == (1, True)
    assert all(min(*cell["seconds"], *cell["processor"], *cell["bytes"]) > 0 for cell in (one, two))
    assert "| P \\ G | 1 | 2 |" in capsys.readouterr().out
