"""Files: what is read, and every way in which a file can be wrong."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from posttrain.data.readers import read_rows
from posttrain.errors import UserError

ROWS = [{"text": "Zürich"}, {"text": 'a "quoted", word\nand a line'}]


def _write(path: Path, rows: list[dict[str, str]]) -> Path:
    suffix = path.name.removesuffix(".gz").rpartition(".")[2]
    if suffix == "parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
        return path
    quoted = ['"' + row["text"].replace('"', '""') + '"' for row in rows]
    text = {
        "jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
        "json": json.dumps(rows, indent=1, ensure_ascii=False),
        "csv": "text\n" + "\n".join(quoted) + "\n",
    }[suffix]
    path.write_bytes(gzip.compress(text.encode()) if path.name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet", "jsonl.gz", "json.gz", "csv.gz"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path = _write(tmp_path / f"rows.{suffix}", ROWS)
    rows = list(read_rows(path))
    assert [row.columns for row in rows] == ROWS
    assert all(row.place.startswith(f"{path} ") for row in rows)


def test_a_place_is_the_line_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": "b"}\n')
    assert [row.place for row in read_rows(path)] == [f"{path} line 1", f"{path} line 3"]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_byte_order_mark_and_windows_line_ends(tmp_path: Path, suffix: str) -> None:
    path = _write(tmp_path / f"rows.{suffix}", [{"text": "a"}, {"text": "b"}])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert [row.columns for row in read_rows(path)] == [{"text": "a"}, {"text": "b"}]


def test_json_lines_under_the_name_json(tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.jsonl", ROWS).rename(tmp_path / "rows.json")
    assert [row.columns for row in read_rows(path)] == ROWS


def _error(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        list(read_rows(path))
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    assert "no such file" in _error(tmp_path / "none.jsonl")
    assert "no such file" in _error(tmp_path / "none.parquet")


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "jsonl.gz"])
@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"rows.{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    assert "empty" in _error(path)


def test_a_table_without_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text\n")
    assert "empty" in _error(path)
    pyarrow.parquet.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "rows.parquet")
    assert "empty" in _error(tmp_path / "rows.parquet")


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_text_that_is_not_utf8_names_the_line(tmp_path: Path, suffix: str) -> None:
    path = _write(
        tmp_path / f"rows.{suffix}", [{"text": f"row {number}"} for number in range(3000)] + [{"text": "Zürich"}]
    )
    path.write_bytes(path.read_bytes().replace("ü".encode(), b"\xfc"))
    line = path.read_bytes().split(b"\xfc")[0].count(b"\n") + 1
    message = _error(path)
    assert f"line {line}:" in message and "not UTF-8" in message and "0xfc" in message


def test_utf16_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"text": "a"}\n'.encode("utf-16"))
    assert "not UTF-8 text but UTF-16" in _error(path)


def test_a_broken_json_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\n{"text": "c"\n')
    assert "line 3: broken JSON" in _error(path)
    path = tmp_path / "rows.json"
    path.write_text('[{"text": "a"},\n{"text" "b"}]')
    assert "line 2: broken JSON" in _error(path)


def test_a_text_that_was_cut_off_is_told_as_such(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b\n{"text": "c"}\n')
    assert "line 2: broken JSON at character 12 (the line ends in the middle of a text; was it cut off?)" in _error(
        path
    )
    path.write_text('{"text": "a"}\n{"text": "b')
    assert "line 2: broken JSON at character 10 (the text that begins there has no end; was it cut off?)" in _error(
        path
    )
    path.write_text('{"text": "a\x1bb"}\n')
    assert r"('\x1b' stands in a text, where JSON writes \u001b)" in _error(path)


def test_a_row_must_be_an_object(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n"b"\n')
    assert "line 2: a row must be an object" in _error(path)
    path = tmp_path / "rows.json"
    path.write_text('[{"text": "a"}, ["b"]]')
    assert "row 2: a row must be an object" in _error(path)


@pytest.mark.parametrize(("row", "word"), [("only", "fewer"), ("one,two,three", "more")])
def test_a_csv_row_of_the_wrong_width(tmp_path: Path, row: str, word: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"prompt,completion\na,b\n{row}\n")
    message = _error(path)
    assert "line 3" in message and word in message


def test_a_csv_field_of_a_megabyte(tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.csv", [{"text": "a" * 2**20}])
    assert len(next(iter(read_rows(path))).columns["text"]) == 2**20


def test_an_open_quote_in_csv(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('text\n"never closed\n')
    assert "broken CSV" in _error(path)


def test_files_that_are_not_what_their_name_says(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"not parquet at all")
    assert "Parquet" in _error(tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl.gz").write_bytes(b'{"text": "a"}\n')
    assert "gzip" in _error(tmp_path / "rows.jsonl.gz")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:-20])
    assert "gzip" in _error(tmp_path / "cut.jsonl.gz")
    (tmp_path / "rows.docx").write_bytes(b"?")
    assert ".jsonl" in _error(tmp_path / "rows.docx")
