"""Mixtures: which rows of which data sets, in which order."""

from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from helpers_data import write_jsonl
from helpers_splits import config, numbers, opened, rows, write_folder

from posttrain.config import DatasetSource, from_mapping
from posttrain.data.prepare import check
from posttrain.data.splits import open_source
from posttrain.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path)


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


def test_a_mixture_holds_the_rows_that_trl_takes(tmp_path: Path) -> None:
    """Numbers of TRL 1.16.0's get_dataset: rows of each of three files with 10, 7 and 13 rows."""
    for name, count in zip("abc", (10, 7, 13), strict=True):
        write_jsonl(tmp_path / name, rows(0, count)).rename(tmp_path / f"{name}.jsonl")
    for fractions, split, taken in (
        ((0.3, 0.5, 0.2), "train", (4, 7, 3)),
        ((1, 1, 1), "train[:50%]", (4, 4, 4)),
        ((3, 0, 1), "train", (10, 0, 3)),
    ):
        paths = [str(tmp_path / f"{name}.jsonl") for name in "abc"]
        entries = [
            DatasetSource(path="json", data_files=path, fraction=one, split=split)
            for path, one in zip(paths, fractions, strict=True)
        ]
        assert opened(datasets=entries) == [number for count in taken for number in range(count)]


def test_the_beginning_of_each_part_is_looked_at(folder: Path) -> None:
    """Before anything heavy is imported, and without counting."""
    good = write_jsonl(folder / "good.jsonl", [{"text": "x", "more": 1}] * 1200)
    bad = write_jsonl(folder / "bad.jsonl", [{"text": "x"}] * 900 + [{"text": 1}])
    parts = [DatasetSource(path=str(path), fraction=0.5) for path in (good, bad)]
    for flags in ({}, {"streaming": True}, {"test_split_size": 0.1, "eval_strategy": "steps"}):
        with pytest.raises(UserError, match=r"bad\.jsonl: 1 of the first 901 rows.*\n.*line 901"):
            check(config(datasets=parts, **flags), "sft")
    assert check(config(datasets=[*parts[:1], replace(parts[1], split="train[:900]")]), "sft") == {"text", "more"}


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
