"""Documents on disk, in any order and in pieces, to rows: shuffling and packing."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from posttrain.data.packing import Piece, best_fit_decreasing, split_documents, wrap
from posttrain.data.places import together

_ROWS_AT_ONCE = 1024


@dataclass
class Documents:
    """Documents for reading pieces of them in any order.

    Args:
        chunks: (values of input_ids, values of loss_mask) of each batch of documents.
        chunk: which of the chunks a document stands in.
        start: where in it.
        lengths: its tokens.
        places: where in the data it was read.
    """

    chunks: list[tuple[np.ndarray, np.ndarray]]
    chunk: list[int]
    start: list[int]
    lengths: list[int]
    places: pa.ChunkedArray

    @classmethod
    def open(cls, path: Path) -> "Documents":
        """Map a stream with the columns input_ids, loss_mask and place."""
        chunks, chunk, start, lengths, places = [], [], [], [], []
        with pa.memory_map(str(path)) as file:
            for number, batch in enumerate(pa.ipc.open_stream(file)):
                ids, mask = batch.column("input_ids"), batch.column("loss_mask")
                chunks.append((ids.values.to_numpy(), mask.values.to_numpy()))
                offsets = ids.offsets.to_numpy()
                chunk += [number] * len(ids)
                start += offsets[:-1].tolist()
                lengths += np.diff(offsets).tolist()
                places.append(batch.column("place"))
        return cls(chunks, chunk, start, lengths, pa.chunked_array(places, pa.string()))

    @classmethod
    def of_columns(cls, batches: Iterable[dict[str, list[Any]]]) -> "Documents":
        """Those of batches in memory."""
        chunks, chunk, start, lengths, places = [], [], [], [], []
        for number, columns in enumerate(batches):
            own = [len(ids) for ids in columns["input_ids"]]
            chunks.append((np.concatenate(columns["input_ids"]), np.concatenate(columns["loss_mask"])))
            chunk += [number] * len(own)
            start += [0, *itertools.accumulate(own[:-1])]
            lengths += own
            places.append(columns["place"])
        return cls(chunks, chunk, start, lengths, pa.chunked_array(places, pa.string()))

    def tokens(self, piece: Piece) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask of a piece."""
        ids, mask = self.chunks[self.chunk[piece.document]]
        start = self.start[piece.document]
        return ids[start + piece.start : start + piece.stop], mask[start + piece.start : start + piece.stop]

    def has_target(self, piece: Piece) -> bool:
        """Whether something in a piece is trained on, when it stands for itself."""
        return bool(self.tokens(piece)[1][1:].any())


def arrange(
    documents: Documents, packing: str | None, max_length: int | None, order: Sequence[int]
) -> list[list[Piece]]:
    """Which pieces of which documents make up each row.

    Pieces without a trained token are left out: they cost time and teach nothing.

    Args:
        documents: all of them.
        packing: the strategy, or None for one document a row.
        max_length: tokens of a row.
        order: the documents in the order in which they are laid out.
    """
    lengths = [documents.lengths[document] for document in order]
    if packing is None:
        rows = [[Piece(document, 0, length)] for document, length in enumerate(lengths)]
    else:
        assert max_length is not None
        rows = _packed(documents, packing, max_length, lengths, order)
    return [[piece._replace(document=order[piece.document]) for piece in row] for row in rows]


def _packed(
    documents: Documents, packing: str, max_length: int, lengths: list[int], order: Sequence[int]
) -> list[list[Piece]]:
    def has_target(piece: Piece) -> bool:
        return documents.has_target(piece._replace(document=order[piece.document]))

    if packing == "wrapped":
        rows = [[piece for piece in row if has_target(piece)] for row in wrap(lengths, max_length)]
        return [row for row in rows if row]
    pieces = split_documents(lengths, max_length)
    if packing == "bfd_split":
        pieces = [piece for piece in pieces if has_target(piece)]
    bins = best_fit_decreasing([piece.stop - piece.start for piece in pieces], max_length)
    return [[pieces[index] for index in one] for one in bins]


def packed_batches(documents: Documents, rows: Sequence[Sequence[Piece]]) -> Iterator[dict[str, list[Any]]]:
    """The rows as columns input_ids, loss_mask, lengths and place (of all their documents), some at a time. The first
    token of every piece is not trained on: nothing in its segment predicts it."""
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        columns: dict[str, list[Any]] = {"input_ids": [], "loss_mask": [], "lengths": [], "place": []}
        for row in rows[first : first + _ROWS_AT_ONCE]:
            tokens = [documents.tokens(piece) for piece in row]
            lengths = np.array([len(ids) for ids, _ in tokens], dtype=np.int32)
            mask = np.concatenate([mask for _, mask in tokens])
            mask[np.cumsum(lengths) - lengths] = 0
            columns["input_ids"].append(np.concatenate([ids for ids, _ in tokens]))
            columns["loss_mask"].append(mask)
            columns["lengths"].append(lengths)
            columns["place"].append(together(documents.places[piece.document].as_py() for piece in row))
        yield columns
