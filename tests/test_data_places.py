"""A batch knows where in the data its rows stand: through blank lines, holding out, mixing, shuffling, packing,
streaming, and rollouts that wait in a checkpoint."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_data import make_tokenizer

from posttrain.batch import PackedBatch
from posttrain.config import DatasetSource, DPOConfig, GRPOConfig, RewardConfig, SFTConfig
from posttrain.data.places import together
from posttrain.data.prepare import in_words, prepare
from posttrain.methods.dpo import DPO
from posttrain.methods.reward import Reward
from posttrain.methods.sft import SFT
from posttrain.rollout.collect import Rollout
from posttrain.rollout.loader import _as_plain, _from_plain, pack_rollouts

TOKENIZER = make_tokenizer()
METHODS: dict[str, tuple[Any, Any]] = {
    "sft": (SFT, SFTConfig),
    "preference": (DPO, DPOConfig),
    "reward": (Reward, RewardConfig),
}
WAYS: dict[str, dict[str, Any]] = {
    "as they stand": {},
    "shuffled": {"shuffle_dataset": True},
    "packed": {"packing": True, "shuffle_dataset": True},
    "wrapped": {"packing": True, "packing_strategy": "wrapped"},
    "held out": {"test_split_size": 4},
    "streamed": {"dataset_streaming": True, "max_steps": 1, "shuffle_dataset": True},
    "streamed and packed": {"dataset_streaming": True, "max_steps": 1, "packing": True},
}
CASES = [("sft", way) for way in WAYS] + [("preference", "held out"), ("reward", "streamed"), ("reward", "held out")]


def write(path: Path, kind: str, first: int = 1) -> Path:
    """12 rows, each of which says on which line it stands; every third line is blank."""
    lines = []
    for line in range(first, first + 18):
        if kind == "sft":
            row = f'{{"text": "<{line:02d}>{"x" * line}"}}'
        else:
            row = f'{{"prompt": "<{line:02d}>", "chosen": "yes", "rejected": "no{"o" * line}"}}'
        lines.append("" if line % 3 == 0 else row)
    path.write_text("\n" * (first - 1) + "\n".join(lines), encoding="utf-8")
    return path


def batches_of(kind: str, **flags: Any) -> list[PackedBatch]:
    method, config_of = METHODS[kind]
    if not hasattr(config_of, "shuffle_dataset"):
        flags.pop("shuffle_dataset", None)
    config = config_of(model_name_or_path="m", max_length=40, **flags)
    data = prepare(config, TOKENIZER, kind, "train")
    assert data is not None
    rows = list(data.dataset)
    return [method(config).collate(rows[start : start + 3]) for start in range(0, len(rows), 3)]


def lines_in(batch: PackedBatch) -> set[int]:
    """The lines that its texts say they come from; of a piece of a document without its beginning, none."""
    return {int(number) for number in re.findall(r"<(\d\d)>", TOKENIZER.decode(batch.input_ids))}


def lines_named(batch: PackedBatch, path: Path) -> set[int]:
    named = together(batch.places)
    assert named.startswith(f"{path} line ")
    return {int(number) for number in named.removeprefix(f"{path} line ").split(", ")}


@pytest.mark.parametrize(("kind", "way"), CASES)
def test_the_lines_that_a_batch_names_are_those_of_its_rows(kind: str, way: str, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", kind)
    batches = batches_of(kind, dataset_name=str(path), cache_dir=str(tmp_path), **WAYS[way])
    assert len(set.union(*map(lines_in, batches))) == (8 if way == "held out" else 12)
    for batch in batches:
        assert lines_in(batch) == lines_named(batch, path) or (
            "wrapped" in way and lines_in(batch) < lines_named(batch, path)
        )
        assert batch.to("cpu").places == batch.places


def test_each_file_of_a_mixture_is_named(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, "sft", first) for name, first in (("a.jsonl", 1), ("b.jsonl", 40))]
    batches = batches_of("sft", datasets=[DatasetSource(path=str(path)) for path in paths], cache_dir=str(tmp_path))
    assert together(place for batch in batches for place in batch.places) == "; ".join(
        f"{path} line " + ", ".join(str(line) for line in range(first, first + 18) if line % 3)
        for path, first in zip(paths, (1, 40), strict=True)
    )


def test_rollouts_name_their_prompts_also_after_a_checkpoint(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", "prompts")
    config = GRPOConfig(model_name_or_path="m", dataset_name=str(path), cache_dir=str(tmp_path))
    data = prepare(config, TOKENIZER, "prompts", "train")
    assert data is not None
    ids, logprobs, rewards = np.array([7, 8]), np.zeros(2, np.float32), np.zeros(1, np.float32)
    rollouts = [Rollout(row, ids, logprobs, True, rewards) for row in (2, 2, 0, 5)]
    batch = pack_rollouts(rollouts, data.dataset, mask_truncated=False)
    assert batch.num_groups == 3 and batch.places == tuple(f"{path} line {line}" for line in (4, 1, 8))
    torch.save(_as_plain(batch), tmp_path / "state.pt")
    assert _from_plain(torch.load(tmp_path / "state.pt", weights_only=True)).places == batch.places


def test_places_of_the_same_file_stand_together() -> None:
    places = ["a b.jsonl line 3", "c.parquet row 1", "a b.jsonl line 12, 3, 4", "no number", "c.parquet row 2"]
    assert together(places) == "a b.jsonl line 3, 12, 4; c.parquet row 1, 2; no number"
    assert together(places, limit=4) == "a b.jsonl line 3, 12, 4; c.parquet row 1 and 2 more"
    assert together([together(places), "a b.jsonl line 5"]).startswith("a b.jsonl line 3, 12, 4, 5; c.parquet")
    assert together([]) == ""


def test_what_became_of_the_rows_is_told_in_order() -> None:
    counts = {"eos_targets": 1, "rows": 1200, "rows_read": 1201, "rows_dropped_no_target": 1, "tokens": 9, "targets": 0}
    assert in_words(counts) == ("1,201 rows read, 1,200 rows, 9 tokens, 1 target that is EOS, 1 row dropped no target")
