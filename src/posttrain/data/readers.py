"""Rows of a local file, each with the place where it stands: .jsonl, .json, .csv (all three also .gz) and .parquet.

Own readers in place of a library's, so that every mistake names its file and line.
"""

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from posttrain.errors import UserError

TEXT_SUFFIXES = (".jsonl", ".json", ".csv")
SUFFIXES = (*TEXT_SUFFIXES, *(suffix + ".gz" for suffix in TEXT_SUFFIXES), ".parquet")
_PARQUET_BATCH = 1024  # rows decoded at a time


class Row(NamedTuple):
    """One row of a data set.

    Args:
        place: where it stands, for messages: "data/train.jsonl line 17"; lines and rows count from 1.
        columns: its values by column name.
    """

    place: str
    columns: dict[str, Any]


def known_suffix(path: Path) -> str | None:
    """The suffix that tells how to read `path` (".csv.gz" is one), or None for a kind of file that is not read."""
    return next((suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if path.name.endswith(suffix)), None)


def read_rows(path: Path) -> Iterator[Row]:
    """Read a file row by row.

    Args:
        path: a file with one of SUFFIXES.

    Returns:
        Its rows in order; at least one.

    Raises:
        UserError: the file is missing, unreadable, empty, not UTF-8, or broken; with the line where there is one.
    """
    suffix = known_suffix(path)
    if suffix is None:
        raise UserError(f"{path}: cannot tell what kind of file this is; data files end in {', '.join(SUFFIXES)}")
    read = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
    empty = True
    try:
        for row in read[suffix.removesuffix(".gz")](path):
            empty = False
            yield row
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: not a whole gzip file ({error}); copy it again or rename it without .gz") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if empty:
        raise UserError(f"{path}: the file is empty; it needs at least one row")


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.name.endswith(".gz") else path.open("rb")


def _not_utf8(path: Path, line: int, error: UnicodeDecodeError) -> UserError:
    byte = error.object[error.start]
    return UserError(
        f"{path} line {line}: not UTF-8 text (byte 0x{byte:02x}); "
        f"convert it, for instance: iconv -f WINDOWS-1252 -t UTF-8 {path.name} > utf8_{path.name}"
    )


def _read_jsonl(path: Path) -> Iterator[Row]:
    with _open(path) as stream:
        for number, raw in enumerate(stream, start=1):
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(path, number, error) from error
            if not line.strip():
                continue
            place = f"{path} line {number}"
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{place}: broken JSON at character {error.colno} ({error.msg}): {_shortened(line)}"
                ) from error
            yield Row(place, _object(value, place))


def _read_json(path: Path) -> Iterator[Row]:
    with _open(path) as stream:
        data = stream.read().removeprefix(codecs.BOM_UTF8)
    if not data.strip():
        return
    if not data.lstrip().startswith(b"["):  # JSON lines under the name .json are common on the hub
        yield from _read_jsonl(path)
        return
    try:
        values = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _not_utf8(path, data.count(b"\n", 0, error.start) + 1, error) from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} line {error.lineno}: broken JSON at character {error.colno} ({error.msg})") from error
    for number, value in enumerate(values, start=1):
        place = f"{path} row {number}"
        yield Row(place, _object(value, place))


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        found = _shortened(json.dumps(value, ensure_ascii=False))
        raise UserError(f'{place}: a row must be an object such as {{"text": "…"}}, found {found}')
    return value


def _read_csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # the default refuses texts of more than 128 KiB
    with _open(path) as stream:
        reader = csv.DictReader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""), strict=True)
        try:
            for values in reader:
                place = f"{path} line {reader.line_num}"
                if None in values or None in values.values():
                    raise UserError(
                        f"{place}: the header names {len(reader.fieldnames or [])} columns, this row has "
                        f"{'more' if None in values else 'fewer'}; text with commas or line breaks needs double quotes"
                    )
                yield Row(place, values)
        except UnicodeDecodeError as error:
            raise _first_undecodable_line(path) from error
        except csv.Error as error:
            raise UserError(f"{path} line {reader.line_num}: broken CSV ({error})") from error


def _first_undecodable_line(path: Path) -> UserError:
    with _open(path) as stream:
        for number, raw in enumerate(stream, start=1):
            try:
                raw.decode("utf-8")
            except UnicodeDecodeError as error:
                return _not_utf8(path, number, error)
    raise AssertionError("the text decoder and the line by line one disagree")


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    if not path.exists():
        raise FileNotFoundError(path)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH):
                for columns in batch.to_pylist():
                    number += 1
                    yield Row(f"{path} row {number}", columns)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path}: not a readable Parquet file ({error})") from error


def _shortened(text: str, limit: int = 80) -> str:
    text = text.strip()
    return text if len(text) <= limit else text[:limit] + "…"
