"""Where rows come from: files, tables of the `datasets` library, mixtures of both, and a part held out for testing."""

import functools
import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from posttrain.data.digests import file_digests
from posttrain.data.files import lines_of
from posttrain.data.json_text import shortened
from posttrain.data.readers import Row, read_rows
from posttrain.errors import UserError

_TABLE_BATCH = 1024  # rows decoded at a time
_OF_LINES = (".jsonl", ".jsonl.gz")  # one row each, but for blank ones
_NAMED = 4  # files of a data set that its name holds


class Source(Protocol):
    """A data set that can be read again and again, always in the same order."""

    @property
    def name(self) -> str:
        """What the user called it, for messages."""

    def rows(self, skip: int = 0) -> Iterator[Row]:
        """All rows but the first `skip`, in order."""

    def digest(self) -> str:
        """Changes when the rows do; the same for the same bytes."""


def combined_digest(*parts: object) -> str:
    """SHA-256 of the parts' representations, in hexadecimal."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def files_digest(paths: list[Path] | tuple[Path, ...]) -> str:
    """SHA-256 over the contents of files, in hexadecimal."""
    return combined_digest(*file_digests(paths))


def files_stamp(paths: list[Path] | tuple[Path, ...]) -> str:
    """SHA-256 over sizes and times of change: for files too large to be read through beforehand."""
    try:
        found = [(path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror or error})") from error
    return combined_digest("stamp", found)


@dataclass(frozen=True)
class FileSource:
    """Local files, one after the other.

    Args:
        paths: the files.
        streamed: do not read them through to see whether they have changed.
        digests: SHA-256 of each file, once `digest` has read them through.
    """

    paths: tuple[Path, ...]
    streamed: bool = False
    digests: dict[Path, str] = field(default_factory=dict, compare=False)

    @property
    def name(self) -> str:
        more = f" and {len(self.paths) - _NAMED:,} more files" if len(self.paths) > _NAMED else ""
        return ", ".join(str(path) for path in self.paths[:_NAMED]) + more

    def rows(self, skip: int = 0) -> Iterator[Row]:
        return itertools.islice(itertools.chain.from_iterable(read_rows(path) for path in self.paths), skip, None)

    def digest(self) -> str:
        if self.streamed:
            content = files_stamp(self.paths)
        else:
            self.digests.update(zip(self.paths, file_digests(self.paths), strict=True))
            content = combined_digest(*(self.digests[path] for path in self.paths))
        return combined_digest([path.suffixes for path in self.paths], content)


@dataclass(frozen=True)
class TableSource:
    """A `datasets.Dataset`, from the hub or from save_to_disk.

    Args:
        name: what the user called it.
        table: the data set.
        fingerprint: changes when the rows do.
        digests: of save_to_disk, SHA-256 of each file where they have been read through, else None.
        hub: id and commit (None where that is not known) of a data set of the hub.
    """

    name: str
    table: Any
    fingerprint: str
    digests: dict[Path, str | None] = field(default_factory=dict, compare=False)
    hub: tuple[str, str | None] | None = None

    def rows(self, skip: int = 0) -> Iterator[Row]:
        if len(self.table) == 0:
            raise UserError(f"{self.name}: the data set is empty; it needs at least one row")
        number, table = skip, self.table.with_format(None)
        for start in range(skip, len(table), _TABLE_BATCH):
            try:
                batch = table[start : start + _TABLE_BATCH]
            except Exception as error:  # the decoders of images, sound and text raise of every kind
                raise UserError(
                    f"{self.name} after row {start}: cannot be read ({shortened(str(error), 300)}); save the columns "
                    "of text to a file of their own"
                ) from error
            for values in zip(*batch.values(), strict=True):
                number += 1
                yield Row(f"{self.name} row {number}", dict(zip(batch, values, strict=True)))

    def digest(self) -> str:
        return self.fingerprint


@dataclass(frozen=True)
class Part:
    """One entry of a mixture.

    Args:
        source: its rows.
        columns: the columns to keep; None keeps all.
        fraction: its share of the mixture, relative to the others'; None takes all of its rows.
        seed: which rows make up the share, where that is not all of them; None takes the first ones.
    """

    source: Source
    columns: tuple[str, ...] | None = None
    fraction: float | None = None
    seed: int | None = None

    def taken(self, limit: int | None) -> Iterator[Row]:
        """So many of its rows, in their order; None takes all."""
        if limit is None or self.seed is None:
            yield from itertools.islice(self.rows(), limit)
            return
        chosen = chosen_rows(count_rows(self.source), limit, self.seed)
        yield from (row for row, is_chosen in zip(self.rows(), chosen, strict=True) if is_chosen)

    def rows(self, skip: int = 0) -> Iterator[Row]:
        """Its rows but the first `skip`, with the columns that are kept."""
        for row in self.source.rows(skip):
            if self.columns is None:
                yield row
                continue
            missing = [column for column in self.columns if column not in row.columns]
            if missing:
                raise UserError(
                    f"{row.place}: no column {', '.join(map(repr, missing))}, which `datasets: columns` asks for; "
                    f"found {', '.join(row.columns)}"
                )
            yield Row(row.place, {column: row.columns[column] for column in self.columns})

    def digest(self) -> tuple[object, ...]:
        """Changes when what it gives to the mixture does."""
        seed = () if self.seed is None else (self.seed,)
        return (self.source.digest(), self.columns, self.fraction, *seed)


@dataclass(frozen=True)
class Mixture:
    """Several sources one after the other. With fractions, some rows of each, so many that the shares are right and
    none is read twice."""

    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        return " + ".join(part.source.name for part in self.parts)

    def rows(self, skip: int = 0) -> Iterator[Row]:
        limits = self._limits()
        parts = (part.taken(limit) for part, limit in zip(self.parts, limits, strict=True))
        return itertools.islice(itertools.chain.from_iterable(parts), skip, None)

    def digest(self) -> str:
        return combined_digest([part.digest() for part in self.parts])

    def _limits(self) -> list[int | None]:
        fractions = [part.fraction for part in self.parts if part.fraction is not None]
        if not fractions:
            return [None] * len(self.parts)
        shares = [fraction / sum(fractions) for fraction in fractions]
        counts = [count_rows(part.source) for part in self.parts]
        total = min(count / share for count, share in zip(counts, shares, strict=True) if share)
        return [round(share * total) for share in shares]


@dataclass(frozen=True)
class HeldOut:
    """A random part of a source, or all but that part. The same seed gives the same parts in every process.

    Args:
        source: what is divided.
        size: rows to hold out if 1 or more, a fraction of the rows if below 1.
        seed: decides which.
        held_out: True for the part held out, False for the rest.
    """

    source: Source
    size: float
    seed: int
    held_out: bool

    @property
    def name(self) -> str:
        return self.source.name

    def rows(self, skip: int = 0) -> Iterator[Row]:
        total = count_rows(self.source)
        wanted = int(self.size) if self.size >= 1 else math.ceil(self.size * total)
        if not 0 < wanted < total:
            lost = "test" if wanted <= 0 else "train"
            raise UserError(
                f"--test_split_size {self.size:g} leaves nothing to {lost} on: {self.name} has {total} rows; "
                "give a fraction between 0 and 1, or a smaller number of rows"
            )
        chosen = chosen_rows(total, wanted, self.seed)
        both = zip(self.source.rows(), chosen, strict=True)
        wanted_rows = (row for row, is_held_out in both if is_held_out == self.held_out)
        yield from itertools.islice(wanted_rows, skip, None)

    def digest(self) -> str:
        return combined_digest(self.source.digest(), self.size, self.seed, self.held_out)


def chosen_rows(total: int, wanted: int, seed: int) -> bytes:
    """For each of `total` rows a byte: 1 for `wanted` of them at random, else 0."""
    import numpy as np

    chosen = np.zeros(total, dtype=np.uint8)
    chosen[np.random.default_rng(seed).permutation(total)[:wanted]] = 1
    return chosen.tobytes()


def count_rows(source: Source) -> int:
    """How many rows a source has; reads it through where it does not know."""
    if isinstance(source, TableSource):
        return len(source.table)
    if isinstance(source, FileSource) and all(path.is_file() for path in source.paths):
        states = ((path, path.stat()) for path in source.paths)
        return sum(_rows_of_file(path, state.st_size, state.st_mtime_ns) for path, state in states)
    return sum(1 for _ in source.rows())


@functools.cache
def _rows_of_file(path: Path, size: int, changed: int) -> int:
    """How many rows a file has; read through once, as long as its size and the time of its last change stay."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        try:
            return int(pyarrow.parquet.read_metadata(path).num_rows)
        except (pyarrow.ArrowException, OSError, ValueError):
            pass  # reading it says what is wrong
    if path.name.endswith(_OF_LINES):  # what stands in them is looked at when they are read as rows
        return sum(1 for _, line in lines_of(path) if line.strip())
    return sum(1 for _ in read_rows(path))
