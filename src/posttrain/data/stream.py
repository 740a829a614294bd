"""Rows tokenised as they are read, for data that is too large, or too far away, to be looked through beforehand.

Rows are read in windows: 1,024 rows of the data, or 8,192 where they are shuffled or packed, which both happen within
a window. (With shuffling, the files of the data are taken in a random order as well.) What a window holds depends on
the data, the seed and the number of the pass alone, and a stream knows its rows by their numbers: every process reads
all of them and takes its own, and a run that is resumed goes on with the very next one. After the last row of the data
the first one follows again.

While the rows of a window are trained on, the next one is made: a thread reads it and lays out its rows, and other
processes tokenise them. (Not the thread: the limits to what a chat template may do hold for a whole process, or for its
main thread.) What it meets with, an error or the end of the data, is told when its first row is asked for.
"""

import contextlib
import itertools
import json
import logging
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from posttrain.data.ahead import Coming
from posttrain.data.arrange import Documents, arrange, packed_batches
from posttrain.data.build import Columns, counted, tokenise, tokenised_batches
from posttrain.data.packing import Numbers
from posttrain.data.parallel import Team, team_of_stream
from posttrain.data.progress import is_first_process
from posttrain.data.readers import Row
from posttrain.data.sources import Source
from posttrain.data.streamed_sources import reordered, streamed_tables
from posttrain.data.tokenised import Options
from posttrain.data.totals import Totals, check_something_left, new_totals, notes_of
from posttrain.data.windows import Place, TokenRow, Window
from posttrain.errors import UserError

logger = logging.getLogger(__name__)

Collate = Callable[[list[TokenRow]], Any]
WINDOW, LARGE_WINDOW = 1024, 8192
AHEAD_FROM = 1024  # rows of the data after which windows are made beforehand
_WINDOWS_HELD = 2
_PLACE_FILE = "stream.json"


class Stream(torch.utils.data.IterableDataset[TokenRow]):
    """The rows of a source in tokens: iterated over, those of one pass; by number, those of one pass after the other.

    Numbers are asked for in about ascending order. Going back further than the window before means reading from the
    beginning.

    Args:
        source: what is read.
        tokenizer: of the model.
        kind: of the rows: "sft", "preference", "reward" or "prompts".
        options: what to make of them.
        seed: of the order of rows within a window; None = as they come.
        fingerprint: of all that the rows depend on.
        processes: that tokenise beside this one, as for `team_of_stream`.

    Attributes:
        counts: as for PreparedData, of the windows read so far.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Any,
        kind: str,
        options: Options,
        seed: int | None,
        fingerprint: str,
        processes: int | None = None,
    ):
        self.source, self.tokenizer, self.kind, self.options = source, tokenizer, kind, options
        self.seed, self._fingerprint = seed, fingerprint
        self.counts: dict[str, int] = {}
        self._processes = processes
        self._team: Team | None = None
        self._coming: Coming[Window] | None = None
        self._held: deque[Window] = deque(maxlen=_WINDOWS_HELD)
        self._latest = 0
        self._has_told = False
        self._start(Place())

    @property
    def _order(self) -> str:
        if self.seed is None:
            return "in the order of the data; what is sorted there should be shuffled beforehand"
        return f"shuffled within {self.window_size:,} rows"

    @property
    def window_size(self) -> int:
        """Rows of the data in a window."""
        return WINDOW if self.options.packing is None and self.seed is None else LARGE_WINDOW

    def __iter__(self) -> Iterator[TokenRow]:
        """The rows of the first pass."""
        for window in self._windows(Place(), new_totals(self.kind)):
            if window.place.passes:
                return
            yield from window.rows

    def __getitem__(self, number: int) -> TokenRow:
        """A row by its number."""
        if self._held and number < self._held[0].place.first:
            self._start(Place())
        while not self._held or number >= self._held[-1].after.first:
            self._held.append(self._next())
            self._count(self._held[-1].after.counts)
            if not self._has_told and is_first_process():
                logger.info("%s: streamed, %s", self.source.name, self._order)
                self._tell(self.counts, "so far, ")
            self._has_told = True
        self._latest = number
        window = next(window for window in reversed(self._held) if number >= window.place.first)
        return window.rows[number - window.place.first]

    @property
    def head(self) -> list[TokenRow]:
        """The rows of the first window that has any."""
        self[0]
        return next(window.rows for window in self._held if window.rows)

    def loader(
        self, collate: Collate, batch_size: int, world_size: int, rank: int, number: int
    ) -> torch.utils.data.DataLoader[Any]:
        """Batches for one of several processes; see StreamedBatches for the arguments."""
        batches = StreamedBatches(self, collate, batch_size, world_size, rank, number)
        return torch.utils.data.DataLoader(batches, batch_size=1, collate_fn=_the_one)

    def save_place(self, folder: str | Path) -> None:
        """Note in a checkpoint where the window begins that the row asked for last stands in."""
        places = [window.place for window in self._held if window.place.first <= self._latest]
        Path(folder).mkdir(parents=True, exist_ok=True)
        lengths = self._held[-1].lengths_of_parts if self._held else self._lengths_of_parts()
        place = asdict(places[-1] if places else Place())
        note = {"place": place, "counts": self.counts, "source": self.source.digest(), "lengths_of_parts": lengths}
        (Path(folder) / _PLACE_FILE).write_text(json.dumps(note), encoding="utf-8")

    def load_place(self, folder: str | Path) -> None:
        """Go on from there. A checkpoint without such a note is none the worse: rows are read from the beginning."""
        file = Path(folder) / _PLACE_FILE
        if file.is_file():
            note = json.loads(file.read_text(encoding="utf-8"))
            if note["source"] != self.source.digest() and is_first_process():
                logger.warning("%s: not the data that the checkpoint was made with; reading goes on all the same", file)
            for table in streamed_tables(self.source):
                table.lengths.update(map(tuple, note["lengths_of_parts"].get(table.fingerprint, [])))
            self._start(Place(**note["place"]))
            self._count(note["counts"])  # what is told at the end, should there be nothing left to read

    def report(self) -> None:
        """Tell the user what has been read, dropped and cut so far."""
        if self.counts:
            self._tell(self.counts, "in all, ")

    def _count(self, counts: dict[str, int]) -> None:
        self.counts.clear()  # the very dictionary that others hold
        self.counts.update(counts)

    def _tell(self, counts: dict[str, int], when: str) -> None:
        if not is_first_process():
            return
        shown = [f"{count:,} {name.replace('_', ' ')}" for name, count in sorted(counts.items()) if count]
        logger.info("%s: %s%s", self.source.name, when, ", ".join(shown))
        for note in self._held[-1].notes if self._held else ():
            logger.warning("%s: %s%s", self.source.name, when, note)

    def _start(self, place: Place) -> None:
        if self._coming is not None:
            with contextlib.suppress(Exception):  # of rows that nobody asks for
                self._coming.result()
        self._coming = None
        self._held.clear()
        totals = new_totals(self.kind)
        totals.counts.update(place.counts)
        totals.dropped.update({name: list(places) for name, places in place.dropped.items()})
        self._ahead = self._windows(place, totals)

    def _next(self) -> Window:
        """The next window; has the one after it made."""
        coming, self._coming = self._coming, None
        window = next(self._ahead) if coming is None else coming.result()
        if self._held and window.place.passes > self._held[-1].place.passes and is_first_process():
            logger.info("%s: read to its end; the first row follows again", self.source.name)
        if window.after.rows_read >= AHEAD_FROM:  # less is made in an instant
            self._workers().start()  # by this thread, and not by one that ends
            self._coming = Coming(self._ahead)
        return window

    def _workers(self) -> Team:
        if self._team is None:
            work = partial(tokenise, self.tokenizer, self.kind, self.options)
            self._team = team_of_stream(work, self._processes, AHEAD_FROM)
            weakref.finalize(self, self._team.close)
        return self._team

    def _lengths_of_parts(self) -> dict[str, Any]:
        return {table.fingerprint: sorted(table.lengths.items()) for table in streamed_tables(self.source)}

    def _windows(self, place: Place, totals: Totals) -> Iterator[Window]:
        while True:
            source = self.source if self.seed is None else reordered(self.source, [self.seed, place.passes])
            rows = source.rows(place.rows_read)
            while part := list(itertools.islice(rows, self.window_size)):
                window = self._window(place, part, totals)
                yield window
                place = window.after
            if not place.rows_read:
                raise UserError(f"{self.source.name}: there are no rows to train on")
            check_something_left(totals, self.source, self.options)
            place = Place(place.first, place.passes + 1, 0, place.counts, place.dropped)

    def _window(self, place: Place, part: list[Row], totals: Totals) -> Window:
        read = tokenised_batches(iter(part), place.rows_read, self._workers(), self.kind, self.options, totals)
        batches = list(read)
        totals.problems.raise_if_any(self.source.name, f"{totals.counts['rows_read']:,} rows read so far")
        number = sum(len(next(iter(columns.values()))) for columns in batches)
        order: Numbers = np.arange(number)
        if self.seed is not None:
            order = np.random.default_rng([self.seed, place.passes, place.rows_read]).permutation(number)
        rows = self._packed(batches, order, totals) if self.options.packing else self._plain(batches, order, totals)
        after = Place(
            place.first + len(rows),
            place.passes,
            place.rows_read + len(part),
            dict(totals.counts),
            {name: list(places) for name, places in totals.dropped.items()},
        )
        notes = notes_of(totals, self.tokenizer, self.options)
        return Window(place, rows, after, notes, self._lengths_of_parts())

    def _plain(self, batches: list[Columns], order: Numbers, totals: Totals) -> list[TokenRow]:
        rows = [row for columns in self._counted(batches, totals) for row in _rows_of(columns)]
        return [rows[index] for index in order]

    def _packed(self, batches: list[Columns], order: Numbers, totals: Totals) -> list[TokenRow]:
        if not batches:
            return []
        documents = Documents.of_columns(batches)
        before = totals.counts["tokens"]
        laid_out = arrange(documents, self.options.packing, self.options.max_length, order)
        columns_of_rows = self._counted(packed_batches(documents, laid_out), totals)
        rows = [row for columns in columns_of_rows for row in _rows_of(columns)]
        totals.counts["tokens_left_out"] += int(documents.lengths.sum()) - (totals.counts["tokens"] - before)
        return rows

    def _counted(self, batches: Any, totals: Totals) -> Iterator[Columns]:
        return counted(batches, self.kind, self.tokenizer.eos_token_id, totals.counts)


def _rows_of(columns: Columns) -> Iterator[TokenRow]:
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


class StreamedBatches(torch.utils.data.Dataset[Any]):
    """This process's batches of a stream, by number: batch k of all processes together holds the rows that follow
    those of batch k - 1, an equal number for each process.

    Args:
        stream: of all rows.
        collate: rows → batch.
        batch_size: rows of this process in a batch.
        world_size: processes.
        rank: number of this one.
        number: batches of a run.
    """

    def __init__(
        self,
        stream: Stream,
        collate: Collate,
        batch_size: int,
        world_size: int,
        rank: int,
        number: int,
    ):
        self.stream, self.collate, self.number = stream, collate, number
        self.batch_size, self.world_size, self.rank = batch_size, world_size, rank

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> Any:
        first = (index * self.world_size + self.rank) * self.batch_size
        return self.collate([self.stream[number] for number in range(first, first + self.batch_size)])


def _the_one(batches: list[Any]) -> Any:
    return batches[0]
