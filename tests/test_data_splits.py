"""From the flags to a source of rows."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy
import pytest
from helpers_data import write_jsonl
from helpers_splits import config, opened, rows, write_folder

from posttrain.config import DatasetSource
from posttrain.data import sources
from posttrain.data.prepare import check
from posttrain.data.readers import Row, read_rows
from posttrain.data.splits import Role, open_source
from posttrain.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path)


def test_a_file_is_for_training(folder: Path) -> None:
    name = str(folder / "train.jsonl")
    assert opened(dataset_name=name) == list(range(6))
    assert open_source(config(dataset_name=name), "test") is None
    with pytest.raises(UserError, match="no split 'dev'"):
        open_source(config(dataset_name=name, dataset_test_split="dev"), "test")


def test_parts_of_one_data_set_and_configurations(folder: Path) -> None:
    file = str(folder / "train.jsonl")
    for name, split, expected in (
        (file, "train[:4]", [0, 1, 2, 3]),
        (file, "train[50%:]", [3, 4, 5]),
        (str(folder), "train[-2:]+validation[:1]", [4, 5, 6]),
    ):
        assert opened(dataset_name=name, dataset_train_split=split) == expected
    assert opened("test", dataset_name=str(folder), dataset_test_split="validation[1:]") == [7]
    assert opened(dataset_name=file, dataset_train_split="train[:4]", streaming=True) == [0, 1, 2, 3]
    with pytest.raises(UserError, match=r"--dataset_train_split: cannot make sense of 'train\[4\]'"):
        opened(dataset_name=file, dataset_train_split="train[4]")
    for name in (file, str(folder)):
        with pytest.raises(UserError, match="leave --dataset_config out"):
            opened(dataset_name=name, dataset_config="nonsense")
        with pytest.raises(UserError, match=r"datasets\[0\]\.name: .* has no configurations"):
            opened(datasets=[DatasetSource(path=name, name="nonsense")])


def test_splits_of_a_folder(folder: Path) -> None:
    name = str(folder)
    assert opened(dataset_name=name) == list(range(6))
    assert opened("test", dataset_name=name) == [6, 7]  # for want of a test split
    write_jsonl(folder / "test.jsonl", rows(8, 9))
    assert opened("test", dataset_name=name) == [8]
    assert opened(dataset_name=name, dataset_train_split="validation") == [6, 7]


def test_a_folder_without_the_split(folder: Path) -> None:
    (folder / "notes.txt").write_text("x")
    with pytest.raises(UserError) as caught:
        opened(dataset_name=str(folder), dataset_train_split="train_sft")
    message = str(caught.value)
    assert "'train_sft'" in message and "notes.txt, train.jsonl, validation.jsonl" in message
    assert "--dataset_train_split" in message
    (folder / "validation.jsonl").unlink()
    assert open_source(config(dataset_name=str(folder)), "test") is None
    with pytest.raises(UserError, match="--dataset_test_split"):
        open_source(config(dataset_name=str(folder), dataset_test_split="test"), "test")  # asked for by name
    (folder / "train.csv").write_text("n\n1\n")
    with pytest.raises(UserError, match=r"train\.csv, train\.jsonl"):
        opened(dataset_name=str(folder))


def test_shards_and_the_folder_data(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for shard in range(2):
        path = tmp_path / "data" / f"train-{shard:05d}-of-00002.parquet"
        datasets.Dataset.from_list(rows(3 * shard, 3 * shard + 3)).to_parquet(path)
    assert opened(dataset_name=str(tmp_path)) == list(range(6))
    (tmp_path / "data").rename(tmp_path / "test")  # as the hub's own Parquet copies lie
    assert opened("test", dataset_name=str(tmp_path)) == list(range(6))
    with pytest.raises(UserError, match="no split 'train'; found test"):
        opened(dataset_name=str(tmp_path))


def test_data_saved_to_disk(tmp_path: Path) -> None:
    train, test = (datasets.Dataset.from_list(rows(*limits)) for limits in ((0, 3), (3, 5)))
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "both")
    assert opened(dataset_name=str(tmp_path / "both")) == [0, 1, 2]
    assert opened("test", dataset_name=str(tmp_path / "both")) == [3, 4]
    with pytest.raises(UserError, match="found train, test"):
        opened(dataset_name=str(tmp_path / "both"), dataset_train_split="dev")
    train.save_to_disk(tmp_path / "one")
    assert opened(dataset_name=str(tmp_path / "one")) == [0, 1, 2]
    assert open_source(config(dataset_name=str(tmp_path / "one")), "test") is None


def test_missing_paths_are_not_asked_of_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(UserError, match=r"did you mean .*train\.jsonl\?"):
        opened(dataset_name=str(folder / "tran.jsonl"))
    with pytest.raises(UserError, match="no such file or folder"):
        opened(dataset_name="data/nowhere/sft")
    with pytest.raises(UserError, match="no such file or folder"):
        opened(dataset_name="rows.jsonl")


def test_a_hub_id(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str, hub_config: str | None) -> datasets.DatasetDict:
        asked.append((name, hub_config))
        if name == "org/none":
            raise datasets.exceptions.DatasetNotFoundError("Dataset 'org/none' doesn't exist on the Hub")
        return datasets.DatasetDict({"train": datasets.Dataset.from_list(rows(0, 2))})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert opened(dataset_name="org/rows", dataset_config="main") == [0, 1]
    assert asked == [("org/rows", "main")]
    assert open_source(config(dataset_name="org/rows"), "test") is None
    with pytest.raises(UserError, match="'dev'; found train"):
        opened(dataset_name="org/rows", dataset_train_split="dev")
    with pytest.raises(UserError, match="has no repository of this name"):
        opened(dataset_name="org/none")


def test_rows_held_out(folder: Path) -> None:
    name = str(folder / "train.jsonl")
    for size, expected in ((2, 2), (0.5, 3), (0.01, 1)):
        test = opened("test", dataset_name=name, test_split_size=size)
        train = opened(dataset_name=name, test_split_size=size)
        assert len(test) == expected and sorted(train + test) == list(range(6))
        assert train == sorted(train) and test == opened("test", dataset_name=name, test_split_size=size)
    seeds = {tuple(opened("test", dataset_name=name, test_split_size=2, seed=seed)) for seed in range(10)}
    assert len(seeds) > 1
    with pytest.raises(UserError, match="leaves nothing to train on"):
        opened(dataset_name=name, test_split_size=6)
    random.seed(1)  # what other libraries draw, and how much of it, decides nothing
    numpy.random.seed(1)
    assert opened("test", dataset_name=name, test_split_size=2, seed=3) == [2, 5]
    # asked for, so it goes before the folder's own
    assert set(opened("test", dataset_name=str(folder), test_split_size=2)) <= set(range(6))


def test_a_digest_follows_the_bytes_and_the_choice(folder: Path) -> None:
    def digest(role: Role = "train", **flags: Any) -> str:
        source = open_source(config(**flags), role)
        assert source is not None
        return source.digest()

    name = str(folder / "train.jsonl")
    before = digest(dataset_name=name)
    held_out = {
        digest(role, dataset_name=name, test_split_size=2, seed=seed) for role in ("train", "test") for seed in (1, 2)
    }
    assert len(held_out | {before}) == 5
    copy = folder / "copy.jsonl"
    copy.write_bytes(Path(name).read_bytes())
    assert digest(dataset_name=str(copy)) == before
    write_jsonl(folder / "train.jsonl", rows(0, 7))
    assert digest(dataset_name=name) != before


def test_values_of_any_type_come_back_from_a_table(tmp_path: Path) -> None:
    calls = [{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {"y": "z"}}]
    given = [
        {"n": number, "messages": [{"role": "assistant", "tool_calls": [call]}]} for number, call in enumerate(calls)
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", given)
    table = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    table.save_to_disk(tmp_path / "saved")
    source = open_source(config(dataset_name=str(tmp_path / "saved")), "train")
    assert source is not None
    assert [row.columns for row in source.rows()] == given


def test_rows_are_counted_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To hold rows out, all are counted; looking at the first ones needs no count, and later ones have it."""
    read = []

    def counting(path: Path) -> Iterator[Row]:
        for row in read_rows(path):
            read.append(row.place)
            yield row

    monkeypatch.setattr(sources, "read_rows", counting)
    flags: dict[str, Any] = {"dataset_name": str(folder / "train.jsonl"), "test_split_size": 2}
    with pytest.raises(UserError, match="cannot be used"):
        check(config(**flags, eval_strategy="steps"), "sft")
    assert len(read) == 6
    assert len(opened(**flags)) == 4 and len(opened("test", **flags)) == 2
    assert len(read) == 6 + 2 * 6  # and lines are counted without a look at what they say
    datasets.Dataset.from_list(rows(0, 4)).to_parquet(folder / "train.parquet")
    assert sources.count_rows(sources.FileSource((folder / "train.parquet",))) == 4 and len(read) == 18
