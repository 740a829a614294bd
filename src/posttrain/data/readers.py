"""Rows of a local file, each with the place where it stands: .jsonl, .json, .csv (all three also .gz) and .parquet.

Own readers in place of a library's, so that every mistake names its file and line, and none of them is passed over: a
key or a column that stands twice is an error.
"""

import csv
import gzip
import io
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from posttrain.data.files import MAX_LINE, check_regular, first_letter, lines_of, whole_text
from posttrain.data.json_text import shortened
from posttrain.data.problems import row_as_text
from posttrain.errors import UserError
from posttrain.strict_json import BrokenJSON, parse_json

TEXT_SUFFIXES = (".jsonl", ".json", ".csv")
SUFFIXES = (*TEXT_SUFFIXES, *(suffix + ".gz" for suffix in TEXT_SUFFIXES), ".parquet")
_PARQUET_ROWS, _PARQUET_BYTES = 1024, 2**26  # decoded at a time


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
        UserError: the file is missing, no regular file, unreadable, empty, not UTF-8, or broken; with the line where
            there is one.
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


def _read_jsonl(path: Path) -> Iterator[Row]:
    for number, line in lines_of(path):
        if not line.strip():
            continue
        place = f"{path} line {number}"
        try:
            value = parse_json(line)
        except BrokenJSON as error:
            where = "" if error.position is None else f" at character {error.position + 1}"
            raise UserError(f"{place}: broken JSON{where} ({error}): {shortened(line)}") from error
        yield Row(place, _object(value, place))


def _read_json(path: Path) -> Iterator[Row]:
    if first_letter(path) != "[":  # JSON lines under the name .json are common on the hub
        yield from _read_jsonl(path)
        return
    text = whole_text(path)
    try:
        values = parse_json(text)
    except BrokenJSON as error:
        where = f"{path}: broken JSON"
        if error.position is not None:
            line = text.count("\n", 0, error.position) + 1
            character = error.position - text.rfind("\n", 0, error.position)
            where = f"{path} line {line}: broken JSON at character {character}"
        raise UserError(f"{where} ({error})") from error
    for number, value in enumerate(values, start=1):
        place = f"{path} row {number}"
        yield Row(place, _object(value, place))


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f'{place}: a row must be an object such as {{"text": "…"}}, found {row_as_text(value, 80)}')
    return value


def _read_csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(MAX_LINE)  # the default refuses texts of more than 128 KiB
    # One line of the file is several where a lone carriage return ends them, as on old Macs.
    lines = (part for _, line in lines_of(path) for part in io.StringIO(line, newline=""))
    reader = csv.reader(lines, strict=True)
    try:
        header = next((names for names in reader if any(name.strip() for name in names)), None)
        if header is None:
            return
        _check_header(header, path)
        for values in reader:
            if not values:
                continue
            place = f"{path} line {reader.line_num}"
            if len(values) != len(header):
                raise UserError(
                    f"{place}: the header names {len(header)} columns, this row has "
                    f"{'more' if len(values) > len(header) else 'fewer'}; text with commas or line breaks needs "
                    "double quotes"
                )
            yield Row(place, dict(zip(header, values, strict=True)))
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num}: broken CSV ({error})") from error


def _check_header(names: Iterable[str], path: Path) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{path}: two columns are called {shortened(twice[0])!r}; give one of them another name")


def _rows_at_once(about: Any) -> int:
    """Fewer rows where they are large."""
    sizes = [about.row_group(number).total_byte_size for number in range(about.num_row_groups)]
    return max(1, min(_PARQUET_ROWS, _PARQUET_BYTES * about.num_rows // max(1, sum(sizes))))


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    check_regular(path)
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _check_header(file.schema_arrow.names, path)
            for batch in file.iter_batches(batch_size=_rows_at_once(file.metadata)):
                for columns in batch.to_pylist():
                    number += 1
                    yield Row(f"{path} row {number}", columns)
    except UserError:
        raise
    except UnicodeDecodeError as error:
        raise UserError(f"{path} after row {number}: text, or the name of a column, is not UTF-8") from error
    except (pyarrow.ArrowException, ValueError, ImportError) as error:  # also of single values
        raise UserError(f"{path}: not a readable Parquet file ({shortened(str(error), 300)})") from error
