"""Broken tables and folders: Parquet, Arrow, save_to_disk, several files, and what is no file at all."""

from __future__ import annotations

import datetime
import io
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
from helpers_corpus import Case, Write, bad, fine, raw

A, B = "a<|end|>", "b<|end|>"
ROW = '{"text": "a"}\n'
TEXTS = {"text": ["a", "b"]}


def parquet_bytes(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink, **options)
    return sink.getvalue()


def parquet(columns: Any, name: str = "rows.parquet", **options: Any) -> Write:
    """A file of columns, or of arrays with their names."""
    table = pa.table(columns) if isinstance(columns, dict) else pa.Table.from_arrays(columns[0], columns[1])
    return raw(parquet_bytes(table, **options), name)


def changed(change: Callable[[bytearray], object], columns: Any = TEXTS) -> Write:
    """A Parquet file with other bytes."""
    data = bytearray(parquet_bytes(pa.table(columns)))
    change(data)
    return raw(bytes(data), "rows.parquet")


def rename(data: bytearray) -> None:
    """Another name for the column, in the file's own schema alone."""
    where = data.rindex(b"\x04text", 0, data.index(b"ARROW:schema"))
    for place in (data.index(b"\x04text"), where):
        data[place + 1] = 0x80


def files(**named: str | bytes) -> Write:
    """A folder of files; __ in a name stands for a dot, ___ for a slash."""

    def write(folder: Path) -> Path:
        for name, content in named.items():
            raw(content, "data/" + name.replace("___", "/").replace("__", "."))(folder)
        (folder / "data").mkdir(exist_ok=True)
        return folder / "data"

    return write


def saved(
    columns: Any = TEXTS, then: Callable[[Path], object] = lambda folder: None, split: str | None = None
) -> Write:
    """A folder of save_to_disk, which something happens to."""

    def write(folder: Path) -> Path:
        data: Any = columns if isinstance(columns, datasets.Dataset) else datasets.Dataset.from_dict(columns)
        data = datasets.DatasetDict({split: data}) if split else data
        data.save_to_disk(str(folder / "saved"))
        then(folder / "saved")
        return folder / "saved"

    return write


def arrow_of(folder: Path) -> Path:
    return next(folder.rglob("*.arrow"))


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def put(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def edited(**values: Any) -> Callable[[Path], object]:
    """dataset_info.json with other values."""

    def edit(folder: Path) -> None:
        path = folder / "dataset_info.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return edit


def special(make: Callable[[Path], object], name: str = "rows.jsonl", given: str | None = None) -> Write:
    """Something that is no file, under a name of one."""

    def write(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path)
        return folder if given == "" else folder / (given or name)

    return write


def a_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def a_hole(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10**10)


def mixture(*entries: dict[str, Any]) -> dict[str, Any]:
    from posttrain.config.common import DatasetSource

    return {"dataset_name": None, "datasets": [DatasetSource(**entry) for entry in entries]}


NOT_UTF8 = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")])
CLASSES = datasets.Dataset.from_dict({"text": [0]}, features=datasets.Features(text=datasets.ClassLabel(names=["a"])))
DEEP: Any = "a"
for _ in range(60):
    DEEP = [DEEP]

CASES: dict[str, Case] = {
    # Parquet
    "Parquet of nothing": bad("sft", raw(b"", "rows.parquet"), "rows.parquet", "not a readable Parquet"),
    "Parquet cut off": bad("sft", changed(lambda data: data.__delitem__(slice(-9, None))), "not a readable Parquet"),
    "Parquet without its head": bad("sft", changed(lambda data: data.__delitem__(slice(0, 40))), "Parquet"),
    "Parquet with a broken footer": bad(
        "sft", changed(lambda data: data.__setitem__(slice(-60, -20), b"\xff" * 40)), "Parquet"
    ),
    "Parquet with zeros for a column": bad(
        "sft", changed(lambda data: data.__setitem__(slice(4, 30), bytes(26))), "Parquet"
    ),
    "Parquet with a column's name that is not UTF-8": bad("sft", changed(rename), "not UTF-8"),
    "JSON named .parquet": bad("sft", raw(ROW, "rows.parquet"), "rows.parquet", "Parquet"),
    "Parquet named .jsonl": bad("sft", parquet(TEXTS, "rows.jsonl"), "rows.jsonl"),
    "Parquet named .csv": bad("sft", parquet(TEXTS, "rows.csv"), "rows.csv"),
    "Parquet without rows": bad("sft", parquet({"text": pa.array([], pa.string())}), "rows.parquet", "empty"),
    "Parquet without columns": bad("sft", parquet({}), "rows.parquet", "empty"),
    "Parquet, two columns of one name": bad(
        "sft", parquet(([pa.array(["a"]), pa.array(["b"])], ["text", "text"])), "two columns"
    ),
    "Parquet of bytes": bad("sft", parquet({"text": [b"a"]}), "row 1", "wrong type in 'text'"),
    "Parquet of numbers": bad("sft", parquet({"text": [1]}), "row 1", "wrong type in 'text'"),
    "Parquet of dates": bad("sft", parquet({"text": [datetime.date(2024, 1, 1)]}), "row 1", "2024-01-01"),
    "Parquet of text that is not UTF-8": bad("sft", parquet({"text": NOT_UTF8}), "rows.parquet", "UTF-8"),
    "Parquet of nulls": bad(
        "sft", parquet({"text": pa.array([None, None], pa.string())}), "row 1", "none with a value"
    ),
    "Parquet with a null": bad("sft", parquet({"text": ["a", None]}), "row 2", "none with a value"),
    "Parquet of lists 60 deep": bad("sft", parquet({"text": [DEEP]}), "rows.parquet", "too deeply nested"),
    "Parquet with other columns": bad("sft", parquet({"txt": ["a"]}), "row 1", "found the columns txt"),
    "Parquet of messages without content": bad(
        "sft", parquet({"messages": [[{"role": "user"}]]}), "messages[0].content"
    ),
    "Parquet with dates beside the text": fine("sft", parquet({"text": ["a"], "at": [datetime.date(2024, 1, 1)]}), [A]),
    "Parquet with nanoseconds": fine(
        "prompts", parquet({"prompt": ["a"], "at": pa.array([1_000], pa.timestamp("ns"))}), ["a"]
    ),
    "Parquet of large texts": fine("sft", parquet({"text": pa.array(["a"], pa.large_string())}), [A]),
    "Parquet of a dictionary": fine("sft", parquet({"text": pa.array(["a", "b"]).dictionary_encode()}), [A, B]),
    "Parquet packed with zstd": fine("sft", parquet(TEXTS, compression="zstd"), [A, B]),
    "Parquet without a column for some": fine(
        "sft", parquet({"text": ["a"], "labels": pa.array([None], pa.null())}), [A]
    ),
    # save_to_disk
    "saved": fine("sft", saved(), [A, B]),
    "saved in splits": fine("sft", saved(split="train"), [A, B]),
    "saved with another split": bad("sft", saved(split="training"), "no split 'train'", "training"),
    "saved without rows": bad("sft", saved({"text": []}), "saved", "not a data set that"),
    "saved, Arrow missing": bad(
        "sft", saved(then=lambda folder: arrow_of(folder).unlink()), "saved", "not a data set that"
    ),
    "saved, Arrow cut off": bad(
        "sft", saved(then=lambda folder: cut(arrow_of(folder), 100)), "saved", "not a data set that"
    ),
    "saved, Arrow of nothing": bad(
        "sft", saved(then=lambda folder: cut(arrow_of(folder), 0)), "saved", "not a data set that"
    ),
    "saved, Arrow is text": bad(
        "sft", saved(then=lambda folder: arrow_of(folder).write_text("x" * 99)), "not a data set that"
    ),
    "saved, state cut off": bad("sft", saved(then=lambda folder: cut(folder / "state.json", 9)), "not a data set that"),
    "saved, state of nothing": bad("sft", saved(then=put("state.json", "")), "not a data set that"),
    "saved, state is a list": bad("sft", saved(then=put("state.json", "[]")), "not a data set that"),
    "saved, no info": bad(
        "sft", saved(then=lambda folder: (folder / "dataset_info.json").unlink()), "not a data set that"
    ),
    "saved, info of an unknown kind": bad(
        "sft", saved(then=edited(features={"text": {"_type": "Exec"}})), "not a data set that"
    ),
    "saved, info of other columns": bad(
        "sft", saved(then=edited(features={"x": {"dtype": "string", "_type": "Value"}})), "not a data set that"
    ),
    "saved, info nested very deep": bad(
        "sft", saved(then=put("dataset_info.json", "[" * 99_999)), "not a data set that"
    ),
    "saved splits, cut off": bad(
        "sft", saved(split="train", then=put("dataset_dict.json", '{"splits": [')), "dataset_dict"
    ),
    "saved splits, without the list": bad(
        "sft", saved(split="train", then=put("dataset_dict.json", "{}")), "dataset_dict"
    ),
    "saved splits, a number": bad("sft", saved(split="train", then=put("dataset_dict.json", "3")), "dataset_dict"),
    "saved splits, not names": bad(
        "sft", saved(split="train", then=put("dataset_dict.json", '{"splits": [1]}')), "names"
    ),
    "saved splits, one missing": bad(
        "sft", saved(split="x", then=put("dataset_dict.json", '{"splits": ["train"]}')), "train", "not a data set that"
    ),
    "saved numbers": bad("sft", saved({"text": [1]}), "row 1", "wrong type in 'text'"),
    "saved other columns": bad("sft", saved({"txt": ["a"]}), "row 1", "found the columns txt"),
    "saved classes": bad(
        "sft",
        saved(CLASSES),
        "row 1",
    ),
    # Folders
    "an empty folder": bad("sft", files(), "no split 'train'", "holds nothing"),
    "a folder of notes": bad("sft", files(README__md="x"), "no split 'train'", "README.md"),
    "a folder with another split": bad("sft", files(test__jsonl=ROW), "no split 'train'", "test"),
    "two files for a split": bad("sft", files(train__jsonl=ROW, train__csv="text\na\n"), "more than one file"),
    "shards": fine("sft", files(**{"train-00000-of-00002__jsonl": ROW, "train-00001-of-00002__jsonl": ROW}), [A, A]),
    "a shard that is broken": bad(
        "sft", files(**{"train-0__jsonl": ROW, "train-1__jsonl": "{"}), "train-1.jsonl line 1"
    ),
    "a shard of nothing": bad("sft", files(**{"train-0__jsonl": ROW, "train-1__jsonl": ""}), "train-1.jsonl", "empty"),
    "shards with other columns": bad(
        "sft", files(**{"train-0__jsonl": ROW, "train-1__jsonl": '{"body": "a"}\n'}), "train-1.jsonl line 1", "body"
    ),
    "shards of two kinds": fine("sft", files(**{"train-0__jsonl": ROW, "train-1__csv": "text\nb\n"}), [A, B]),
    "shards in a folder": fine("sft", files(train___one__jsonl=ROW, train___two__jsonl=ROW), [A, A]),
    "a folder named .jsonl": bad("sft", special(lambda path: path.mkdir()), "rows.jsonl", "no split"),
    # No files
    "a missing file": bad("sft", lambda folder: folder / "rows.jsonl", "rows.jsonl", "no such file"),
    "a misspelt file": bad(
        "sft", special(lambda path: path.write_text(ROW), given="row.jsonl"), "did you mean", "rows.jsonl"
    ),
    "a link to itself": bad("sft", special(lambda path: path.symlink_to(path)), "rows.jsonl"),
    "a link to nothing": bad("sft", special(lambda path: path.symlink_to("gone")), "rows.jsonl"),
    "a pipe": bad("sft", special(lambda path: os.mkfifo(path)), "rows.jsonl", "a pipe, a device"),
    "a pipe of no kind": bad("sft", special(lambda path: os.mkfifo(path), "rows"), "rows: a pipe, a device"),
    "a device": bad("sft", lambda folder: Path("/dev/zero"), "/dev/zero: a pipe, a device"),
    "a pipe in a folder": bad("sft", special(lambda path: os.mkfifo(path), "train.jsonl", given=""), "no split"),
    "a pipe in a split's folder": bad(
        "sft", special(lambda path: os.mkfifo(path), "train/a.jsonl", given=""), "a pipe"
    ),
    "a pipe of Parquet": bad("sft", special(lambda path: os.mkfifo(path), "train/a.parquet", given=""), "a pipe"),
    "a socket": bad("sft", special(a_socket), "rows.jsonl"),
    "a device without end": bad("sft", special(lambda path: path.symlink_to("/dev/zero")), "rows.jsonl"),
    "a device in a split's folder": bad(
        "sft", special(lambda path: path.symlink_to("/dev/zero"), "train/a.jsonl", given=""), "a device"
    ),
    "a file that cannot be read": bad("sft", special(lambda path: path.symlink_to("/proc/self/mem")), "cannot be read"),
    "10 GB of nothing": bad("sft", special(a_hole), "line 1", "longer than"),
    "a folder in a split's folder": bad(
        "sft", special(lambda path: path.mkdir(), "train/a.jsonl", given=""), "a folder"
    ),
    "a loop in a split's folder": bad(
        "sft", special(lambda path: path.symlink_to(path), "train/a.jsonl", given=""), "train/a.jsonl", "cannot be read"
    ),
    "a name of 5,000 letters": bad("sft", lambda folder: str(folder / ("x" * 5000 + ".jsonl")), "too long"),
    "a name with NUL": bad("sft", lambda folder: str(folder / "ro\0ws.jsonl"), "no such file"),
    "the home of nobody": bad("sft", lambda folder: "~nobody-here/rows.jsonl", "nobody-here"),
    "a name of bytes": fine(
        "prompts", special(lambda path: path.write_text('{"prompt": "a"}'), "r\udcff.jsonl"), ["a"]
    ),
    # Mixtures
    "a mixture with a missing file": bad("sft", raw(ROW), "gone.jsonl", flags=mixture({"path": "./gone.jsonl"})),
    "a mixture of no files": bad(
        "sft", raw(ROW), "no file is like", flags=mixture({"path": "json", "data_files": "/nowhere/*.jsonl"})
    ),
    "a mixture of a missing column": bad(
        "sft", raw(ROW), "no column 'body'",
        flags=mixture({"path": "json", "data_files": "rows.jsonl", "columns": ["body"]}),
    ),
    "a mixture of a device": bad(
        "sft", raw(ROW), "/dev/zero", flags=mixture({"path": "json", "data_files": ["/dev/zero"]})
    ),
    "a part that holds nothing": bad("sft", raw(ROW), "holds no row", flags={"dataset_train_split": "train[5:3]"}),
    "a split in no notation": bad("sft", raw(ROW), "train[", flags={"dataset_train_split": "train["}),
}  # fmt: skip
