"""Documents on disk, in any order and in pieces, to rows: shuffling and packing. What is known of a document is some
numbers in arrays, so that there may be millions of them; their tokens stay on disk, mapped into memory."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from posttrain.data.packing import Numbers, Pieces, Rows, best_fit_decreasing, by_row, split_documents, wrap
from posttrain.data.places import together

_ROWS_AT_ONCE = 1024


@dataclass
class Documents:
    """Documents for reading pieces of them in any order.

    Args:
        chunks: (values of input_ids, values of loss_mask, places) of each batch of documents; a place is where in the
            data a document was read.
        first: (chunks,) number of the first document of each.
        start: (documents,) where in its chunk each begins.
        lengths: (documents,) its tokens.
    """

    chunks: list[tuple[np.ndarray, np.ndarray, pa.Array]]
    first: Numbers
    start: Numbers
    lengths: Numbers

    @classmethod
    def open(cls, path: Path) -> "Documents":
        """Map a stream with the columns input_ids, loss_mask and place."""
        chunks, offsets = [], []
        with pa.memory_map(str(path)) as file:
            for batch in pa.ipc.open_stream(file):
                ids, mask = batch.column("input_ids"), batch.column("loss_mask")
                chunks.append((ids.values.to_numpy(), mask.values.to_numpy(), batch.column("place")))
                offsets.append(ids.offsets.to_numpy())
        return cls._of_offsets(chunks, offsets)

    @classmethod
    def of_columns(cls, batches: Iterable[dict[str, list[Any]]]) -> "Documents":
        """Those of batches in memory."""
        chunks, offsets = [], []
        for columns in batches:
            ids, mask = np.concatenate(columns["input_ids"]), np.concatenate(columns["loss_mask"])
            chunks.append((ids, mask, pa.array(columns["place"], pa.string())))
            offsets.append(np.cumsum([0, *map(len, columns["input_ids"])]))
        return cls._of_offsets(chunks, offsets)

    @classmethod
    def _of_offsets(cls, chunks: list[Any], offsets: list[Numbers]) -> "Documents":
        nothing = np.zeros(0, np.int32)
        start = np.concatenate([nothing, *(one[:-1] for one in offsets)], dtype=np.int32)
        lengths = np.concatenate([nothing, *(np.diff(one) for one in offsets)], dtype=np.int32)
        first = np.cumsum([0, *(len(one) - 1 for one in offsets)])[:-1]
        return cls(chunks, first, start, lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def chunk_of(self, document: Numbers) -> Numbers:
        """The chunks that documents stand in."""
        return np.searchsorted(self.first, document, side="right") - 1

    def have_target(self, pieces: Pieces) -> Numbers:
        """(pieces,) bool: whether something in each is trained on, when it stands for itself."""
        found = np.zeros(len(pieces.document), dtype=bool)
        chunk = self.chunk_of(pieces.document)
        order = np.argsort(chunk, kind="stable")
        bounds = np.searchsorted(chunk[order], np.arange(len(self.chunks) + 1))
        for (_, mask, _), begin, end in zip(self.chunks, bounds[:-1], bounds[1:], strict=True):
            own = order[begin:end]
            counts = np.concatenate([[0], np.cumsum(mask, dtype=np.int64)])
            start, of_own = self.start[pieces.document[own]], pieces.at(own)
            found[own] = counts[start + of_own.stop] > counts[start + of_own.start + 1]
        return found


@dataclass(frozen=True)
class Layout:
    """What the rows to train on are made of.

    Args:
        pieces: in the order in which rows hold them.
        starts: (rows + 1,) where in `pieces` each row begins, and where the last one ends.
    """

    pieces: Pieces
    starts: Numbers

    def __len__(self) -> int:
        return len(self.starts) - 1


def arrange(documents: Documents, packing: str | None, max_length: int | None, order: Numbers) -> Layout:
    """Which pieces of which documents make up each row.

    Pieces without a trained token are left out: they cost time and teach nothing.

    Args:
        documents: all of them.
        packing: the strategy, or None for one document a row.
        max_length: tokens of a row.
        order: (documents,) the documents in the order in which they are laid out.
    """
    lengths = documents.lengths[order]
    if packing is None:
        pieces = Pieces(order.astype(np.int32), np.zeros_like(lengths), lengths)
        return Layout(pieces, np.arange(len(order) + 1))
    assert max_length is not None
    if packing == "wrapped":
        pieces, row_of = wrap(lengths, max_length)
    else:
        pieces = split_documents(lengths, max_length)
    pieces = pieces._replace(document=order[pieces.document].astype(np.int32))
    kept = slice(None) if packing == "bfd" else np.flatnonzero(documents.have_target(pieces))
    pieces = pieces.at(kept)  # type: ignore[arg-type]
    rows: Rows = (
        by_row(row_of[kept]) if packing == "wrapped" else best_fit_decreasing(pieces.stop - pieces.start, max_length)
    )
    return Layout(pieces.at(rows.things), rows.starts)


def packed_batches(documents: Documents, layout: Layout) -> Iterator[dict[str, list[Any]]]:
    """The rows as columns input_ids, loss_mask, lengths and place (of all their documents), some at a time. The first
    token of every piece is not trained on: nothing in its segment predicts it."""
    for first in range(0, len(layout), _ROWS_AT_ONCE):
        starts = layout.starts[first : first + _ROWS_AT_ONCE + 1]
        pieces = layout.pieces.at(slice(starts[0], starts[-1]))  # type: ignore[arg-type]
        parts = _parts(documents, pieces)
        columns: dict[str, list[Any]] = {"input_ids": [], "loss_mask": [], "lengths": [], "place": []}
        bounds = (starts - starts[0]).tolist()
        for begin, end in itertools.pairwise(bounds):
            row = list(itertools.islice(parts, end - begin))
            lengths = np.array([len(ids) for ids, _, _ in row], dtype=np.int32)
            mask = np.concatenate([mask for _, mask, _ in row])
            mask[np.cumsum(lengths) - lengths] = 0
            columns["input_ids"].append(np.concatenate([ids for ids, _, _ in row]))
            columns["loss_mask"].append(mask)
            columns["lengths"].append(lengths)
            columns["place"].append(together(place for _, _, place in row))
        yield columns


def _parts(documents: Documents, pieces: Pieces) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
    """Ids, mask and place of each piece."""
    chunk = documents.chunk_of(pieces.document)
    in_chunk = pieces.document - documents.first[chunk]
    start = documents.start[pieces.document].astype(np.int64)
    bounds = (chunk, in_chunk, start + pieces.start, start + pieces.stop)
    for number, index, begin, end in zip(*(one.tolist() for one in bounds), strict=True):
        ids, mask, places = documents.chunks[number]
        yield ids[begin:end], mask[begin:end], places[index].as_py()
