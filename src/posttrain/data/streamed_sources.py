"""Sources whose rows are read as they are asked for, and whose number nobody knows."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from posttrain.data.json_text import shortened
from posttrain.data.readers import Row
from posttrain.data.slices import Slice
from posttrain.data.sources import FileSource, Mixture, Part, Source, combined_digest
from posttrain.errors import UserError
from posttrain.hub import PAGE, explain, hide_token


@dataclass(frozen=True)
class StreamedTable:
    """A `datasets.IterableDataset` of the hub.

    Args:
        name: what the user called it.
        table: the data set.
        fingerprint: of its commit, and of what is taken of it.
        order: numbers of the parts that it is stored in, as they are read; None = as they come.
        lengths: rows of the parts that have been read to their end; so many of them are passed by without being asked
            for again.
        hub: id and commit of the data set.
    """

    name: str
    table: Any
    fingerprint: str
    order: tuple[int, ...] | None = None
    lengths: dict[int, int] = field(default_factory=dict, compare=False)
    hub: tuple[str, str | None] | None = None

    def rows(self, skip: int = 0) -> Iterator[Row]:
        number = 0
        for part in self.order or range(self.table.num_shards):
            if number + self.lengths.get(part, skip + 1) <= skip:
                number += self.lengths[part]
                continue
            first = number
            for columns in self._rows_of(part, number):
                number += 1
                if number > skip:
                    yield Row(f"{self.name} row {number}", columns)
            self.lengths[part] = number - first

    def _rows_of(self, part: int, before: int) -> Iterator[dict[str, Any]]:
        try:
            for columns in self.table.shard(self.table.num_shards, part):
                before += 1
                yield dict(columns)
        except (OSError, RuntimeError, ValueError) as error:  # the connection, or what stands in the file
            reason = explain(error, self.name) or hide_token(f"{self.name}: {shortened(str(error), 300)}")
            raise UserError(f"{reason} (after row {before:,})", PAGE) from error

    def digest(self) -> str:
        return self.fingerprint


@dataclass(frozen=True)
class FirstRows:
    """The first rows of a source, or all but those: what is held out of rows that cannot be counted.

    Args:
        source: what is divided.
        number: rows to hold out.
        held_out: True for those, False for the rest.
    """

    source: Source
    number: int
    held_out: bool

    @property
    def name(self) -> str:
        return self.source.name

    def rows(self, skip: int = 0) -> Iterator[Row]:
        if self.held_out:
            return itertools.islice(self.source.rows(skip), max(0, self.number - skip))
        return self.source.rows(skip + self.number)

    def digest(self) -> str:
        return combined_digest("first", self.source.digest(), self.number, self.held_out)


@dataclass(frozen=True)
class Interleaved:
    """Several sources in turn, so that at every place their shares are as near to the fractions as whole rows allow;
    to the end of the one that has the fewest rows for its share. None is read twice."""

    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        return " + ".join(part.source.name for part in self.parts)

    def rows(self, skip: int = 0) -> Iterator[Row]:
        order = self._order()
        taken = [0] * len(self.parts)
        for index in itertools.islice(order, skip):
            taken[index] += 1
        open_parts = [part.rows(number) for part, number in zip(self.parts, taken, strict=True)]
        for index in order:
            row = next(open_parts[index], None)
            if row is None:
                return
            yield row

    def digest(self) -> str:
        return combined_digest("interleaved", [part.digest() for part in self.parts])

    def _order(self) -> Iterator[int]:
        """Whose turn it is: the part that lacks most for its share."""
        fractions = [part.fraction or 0.0 for part in self.parts]
        shares = [fraction / sum(fractions) for fraction in fractions]
        taken = [0] * len(shares)
        for total in itertools.count(1):
            index = max(range(len(shares)), key=lambda one: (shares[one] * total - taken[one], -one))
            taken[index] += 1
            yield index


def reordered(source: Source, seed: list[int]) -> Source:
    """A source with its files, or the parts that a hub data set is stored in, in a random order; mixtures keep theirs.

    Args:
        source: read from its beginning.
        seed: decides the order.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    if isinstance(source, FileSource):
        return replace(source, paths=tuple(source.paths[index] for index in rng.permutation(len(source.paths))))
    if isinstance(source, StreamedTable):
        return replace(source, order=tuple(rng.permutation(source.table.num_shards).tolist()))
    if isinstance(source, Mixture | Interleaved):
        parts = [replace(part, source=reordered(part.source, [*seed, i])) for i, part in enumerate(source.parts)]
        return replace(source, parts=tuple(parts))
    return source


def streamed_tables(source: Source) -> list[StreamedTable]:
    """The data sets of the hub that a source reads, always in the same order."""
    if isinstance(source, StreamedTable):
        return [source]
    if isinstance(source, FirstRows | Slice):
        return streamed_tables(source.source)
    if isinstance(source, Mixture | Interleaved):
        return [table for part in source.parts for table in streamed_tables(part.source)]
    return []
