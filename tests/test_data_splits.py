"""From the flags to a source of rows."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy
import pytest
from helpers_data import write_jsonl

from posttrain.config import DatasetSource, SFTConfig, from_mapping
from posttrain.data import sources
from posttrain.data.prepare import check
from posttrain.data.readers import Row, read_rows
from posttrain.data.sources import Source
from posttrain.data.splits import Role, open_source
from posttrain.errors import UserError


def config(**flags: Any) -> SFTConfig:
    return SFTConfig(model_name_or_path="model", explicit=frozenset(flags), **flags)


def numbers(source: Source | None) -> list[int]:
    assert source is not None
    return [row.columns["n"] for row in source.rows()]


def opened(role: Role = "train", **flags: Any) -> list[int]:
    return numbers(open_source(config(**flags), role))


def rows(start: int, stop: int) -> list[dict[str, int]]:
    return [{"n": number} for number in range(start, stop)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "train.jsonl", rows(0, 6))
    write_jsonl(tmp_path / "validation.jsonl", rows(6, 8))
    return tmp_path


def test_a_file_is_for_training(folder: Path) -> None:
    name = str(folder / "train.jsonl")
    assert opened(dataset_name=name) == list(range(6))
    assert open_source(config(dataset_name=name), "test") is None
    with pytest.raises(UserError, match="no split 'dev'"):
        open_source(config(dataset_name=name, dataset_test_split="dev"), "test")


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


def test_a_mixture(folder: Path) -> None:
    train, validation = DatasetSource(path=str(folder)), DatasetSource(path=str(folder), split="validation")
    assert opened(datasets=[train, validation]) == list(range(8))
    assert open_source(config(datasets=[train]), "test") is None
    assert len(opened("test", datasets=[train, validation], test_split_size=3)) == 3
    by_file = DatasetSource(path="json", data_files={"train": str(folder / "train.jsonl")})
    in_folder = DatasetSource(path=str(folder), data_files=["validation.jsonl", "train.jsonl"])
    like = DatasetSource(path="json", data_files=str(folder / "*.jsonl"))
    in_data_dir = DatasetSource(path=str(folder.parent), data_dir=folder.name)
    assert opened(datasets=[by_file]) == list(range(6))
    assert opened(datasets=[in_folder]) == [6, 7, 0, 1, 2, 3, 4, 5]
    assert opened(datasets=[in_data_dir]) == opened(datasets=[like])[:6] == list(range(6))
    (folder / "saved").mkdir()
    datasets.Dataset.from_list(rows(6, 8)).save_to_disk(folder / "saved" / "one")
    datasets.Dataset.from_list(rows(8, 9)).to_parquet(folder / "saved" / "more.parquet")
    parts = [DatasetSource(path=str(folder / "saved" / name)) for name in ("one", "more.parquet")]
    assert opened(datasets=[train, *parts]) == list(range(9))


def test_slices_of_a_mixture(folder: Path) -> None:
    for split, expected in (
        ("train[:2]", [0, 1]),
        ("train[4:]", [4, 5]),
        ("train[-2:]", [4, 5]),
        ("train[:-5]", [0]),
        ("train[:50%]+validation", [0, 1, 2, 6, 7]),
        ("train[1:3]+train[50%:67%]", [1, 2, 3]),
        ("train[:100]", list(range(6))),
    ):
        assert opened(datasets=[DatasetSource(path=str(folder), split=split)]) == expected
    entry = DatasetSource(path=str(folder), split="train[2:5]")
    assert opened(datasets=[entry], streaming=True) == [2, 3, 4]
    source = open_source(config(datasets=[entry], streaming=True), "train")
    assert source is not None and [row.columns["n"] for row in source.rows(2)] == [4]
    for split, expected_text, streaming in (
        ("train[", "cannot make sense of 'train\\['", False),
        ("train[3:3]", r"\[3:3\] holds no row", False),
        ("dev[:3]", "no split 'dev'", False),
        ("train[:10%]", "streamed ones are not counted", True),
    ):
        with pytest.raises(UserError, match=expected_text):
            opened(datasets=[DatasetSource(path=str(folder), split=split)], streaming=streaming)


def test_columns_and_fractions_of_a_mixture(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"n": number, "extra": 1} for number in range(10)])
    write_jsonl(tmp_path / "b.jsonl", rows(10, 14))
    a = DatasetSource(path=str(tmp_path / "a.jsonl"), columns=["n"], fraction=0.5)
    b = DatasetSource(path=str(tmp_path / "b.jsonl"), fraction=0.5)
    source = open_source(config(datasets=[a, b]), "train")
    assert numbers(source) == [0, 1, 2, 3, 10, 11, 12, 13]  # b has 4 rows, so a gives no more
    assert source is not None and "extra" not in next(source.rows()).columns
    assert numbers(open_source(config(datasets=[replace(a, fraction=3.0), replace(b, fraction=0.0)]), "train")) == list(
        range(10)
    )
    drawn = [opened(datasets=[replace(a, seed=seed), b]) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(one[4:] == [10, 11, 12, 13] and one[:4] == sorted(one[:4]) != [0, 1, 2, 3] for one in drawn)
    with pytest.raises(UserError, match="no column 'm'"):
        opened(datasets=[DatasetSource(path=str(tmp_path / "b.jsonl"), columns=["m"])])


def test_mistakes_in_a_mixture(folder: Path) -> None:
    with pytest.raises(UserError, match=r"datasets\[0\]\.data_files is missing"):
        opened(datasets=[DatasetSource(path="json")])
    with pytest.raises(UserError, match=r"datasets\[0\]\.data_files: no file is like .*nothing-\*"):
        opened(datasets=[DatasetSource(path=str(folder), data_files="nothing-*")])
    with pytest.raises(UserError, match=r"datasets\[1\]\.path\)"):
        opened(datasets=[DatasetSource(path=str(folder)), DatasetSource(path=str(folder / "gone.jsonl"))])
    with pytest.raises(UserError, match="no split 'test'; found train"):
        opened(datasets=[DatasetSource(path="json", data_files={"train": "x.jsonl"}, split="test")])
    with pytest.raises(UserError, match=r"no split 'dev'.*\(datasets\[0\]\.split\)"):
        opened(datasets=[DatasetSource(path=str(folder), split="dev")])
    for first, second, expected in (
        ({"fraction": 1}, {}, "datasets[1].fraction is missing; give a fraction for all datasets or for none"),
        ({"fraction": 0}, {"fraction": 0.0}, "datasets[0].fraction is 0"),
        ({}, {"seed": 1}, "datasets[1].seed draws the rows of a fraction"),
        ({}, {"fraction": "half"}, "datasets[1].fraction"),
        ({}, {"fractoin": 1}, "datasets[1].fractoin"),
        ({}, {"path": None}, "datasets[1].path"),
    ):
        entries = [{"path": str(folder)} | first, {"path": str(folder)} | second]
        with pytest.raises(UserError) as caught:
            from_mapping("sft", {"model_name_or_path": "model", "datasets": entries}, "sft.yaml")
        assert f"sft.yaml: {expected}" in str(caught.value)


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
    assert len(read) == 6 + 6 + 2 * 6
    datasets.Dataset.from_list(rows(0, 4)).to_parquet(folder / "train.parquet")
    assert sources.count_rows(sources.FileSource((folder / "train.parquet",))) == 4 and len(read) == 24
