"""Rows in numbers: how many tokens each has in the packed layout, how many of them are targets, what they attend to.

Of rows that are prepared, from their file, which is mapped into memory. Of more rows than MOST_READ of data that has
not been prepared, or that is streamed, from the first ones, prepared in a folder that is thrown away again.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from posttrain.data import store
from posttrain.data.build import build
from posttrain.data.prepare import options_of, prepare
from posttrain.data.size import bytes_of, expected_rows
from posttrain.data.sources import HeldOut, Source
from posttrain.data.splits import open_source
from posttrain.data.streamed_sources import FirstRows
from posttrain.planning.preparation import Preparation, preparation

if TYPE_CHECKING:
    from posttrain.config import CommonConfig

Numbers = npt.NDArray[np.int64]

_MOST_LOOKED_AT = 400_000  # of rows that are prepared: further ones only count
_MANY_BYTES, _MANY_ROWS = 2**28, 200_000  # of data that takes more than some seconds to prepare


@dataclass(frozen=True)
class RowLengths:
    """Rows as batches hold them; arrays of one length.

    Args:
        tokens: in the packed layout.
        targets: that have a loss; of reward models the scores.
        unshared: tokens with a shared prompt counted for each sequence that it belongs to.
        longest: tokens of the longest sequence.
        sequences: documents, or completions.
        keys: keys of segments with a parent, whose keys and values are copied.
        pairs: of a query and a key that it sees.
    """

    tokens: Numbers
    targets: Numbers
    unshared: Numbers
    longest: Numbers
    sequences: Numbers
    keys: Numbers
    pairs: Numbers

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Rows:
    """A split, as far as a plan has to know it.

    Args:
        name: of its source.
        counts: as of PreparedData; where rows were sampled, scaled up.
        lengths: of all rows, or of some of them.
        num_rows: that there are, or about how many; None where nobody can tell.
        num_read: rows of the data that were looked at; None: all.
        notes: what training will say of them.
        bytes_on_disk: of the prepared rows.
        preparation: what they take where they are not prepared yet.
    """

    name: str
    counts: dict[str, int]
    lengths: RowLengths
    num_rows: int | None
    num_read: int | None
    notes: tuple[str, ...]
    bytes_on_disk: int
    preparation: Preparation | None = None

    @property
    def is_sampled(self) -> bool:
        return self.num_read is not None


def rows_of(config: CommonConfig, tokenizer: Any, split: str, most_read: int) -> Rows | None:
    """The rows of a split.

    Args:
        config: of the run.
        tokenizer: of the run.
        split: its name.
        most_read: rows of the data to tokenise where there are many, or they are streamed.

    Returns:
        None where there is nothing to test on.

    Raises:
        UserError: data that cannot be used.
    """
    role = "train" if split == config.dataset_train_split else "test"
    source = open_source(config, role)  # type: ignore[arg-type]
    if source is None:
        return None
    kind = config.data_kind
    expected = expected_rows(source)
    is_streamed = config.is_streamed and role == "train"
    if is_streamed or (_is_large(source, expected) and (expected is None or expected > most_read)):
        return _sampled(config, tokenizer, source, role, expected, most_read)
    prepared = prepare(config, tokenizer, kind, split)
    assert prepared is not None
    dataset: Any = prepared.dataset
    batches = dataset.data.to_batches()
    lengths = _lengths(batches, kind, len(dataset))
    size = sum(batch.nbytes for batch in batches)
    return Rows(source.name, dict(prepared.counts), lengths, len(dataset), None, (), size)


def _sampled(
    config: CommonConfig, tokenizer: Any, source: Source, role: Any, expected: int | None, most_read: int
) -> Rows:
    kind, options = config.data_kind, options_of(config, config.data_kind, role)
    if isinstance(source, HeldOut):  # which would count all rows to draw some of them
        source = source.source
    with tempfile.TemporaryDirectory(prefix="posttrain-plan-") as folder:
        start = time.process_time()
        build(Path(folder), FirstRows(source, most_read, held_out=True), tokenizer, kind, options, processes=1)
        seconds = time.process_time() - start
        about = store.read_about(Path(folder))
        dataset = store.open_rows(Path(folder) / store.ROWS, "plan")
        lengths = _lengths(dataset.data.to_batches(), kind, len(dataset))
        size = (Path(folder) / store.ROWS).stat().st_size
        del dataset
    counts: dict[str, int] = about["counts"]
    read = counts["rows_read"]
    if read < most_read:  # there are no others
        return Rows(source.name, counts, lengths, counts["rows"], None, tuple(about["notes"]), size)
    factor = expected / read if expected is not None else 1.0
    scaled = {name: round(count * factor) for name, count in counts.items()}
    known = None if expected is None else scaled["rows"]
    notes = tuple(about["notes"])
    if config.is_streamed or expected is None:
        return Rows(source.name, scaled, lengths, known, read, notes, 0 if config.is_streamed else size)
    in_order = None if options.packing is None and options.shuffle_seed is None else float(size)
    needed = preparation(config.dataset_num_proc, expected, seconds, size, in_order, read)
    return Rows(source.name, scaled, lengths, known, read, notes, round(size * factor), needed)


def _is_large(source: Source, expected: int | None) -> bool:
    """Whether preparing all of it takes more than some seconds."""
    return (bytes_of(source) or 0) > _MANY_BYTES or (expected or 0) > _MANY_ROWS


# -- lengths


def _lengths(batches: list[pa.RecordBatch], kind: str, num_rows: int) -> RowLengths:
    """Of every row, or of those of some batches all over the file."""
    every = max(1, num_rows // _MOST_LOOKED_AT)
    parts = [_of_batch(batch, kind) for batch in batches[::every] if batch.num_rows]
    columns = zip(*parts, strict=True) if parts else [[np.zeros(0, np.int64)]] * 7
    return RowLengths(*(np.concatenate(list(column)) for column in columns))


def _of_batch(batch: pa.RecordBatch, kind: str) -> tuple[Numbers, ...]:
    if kind == "sft":
        return _of_documents(batch)
    prompt = _counts(batch, "prompt_ids")
    if kind == "prompts":
        nothing = np.zeros_like(prompt)
        return prompt, nothing, prompt, prompt, nothing, nothing, prompt * (prompt + 1) // 2
    chosen, rejected = _counts(batch, "chosen_ids"), _counts(batch, "rejected_ids")
    if kind == "reward":
        targets = np.full_like(prompt, 2)
    else:
        targets = _sums(batch, "chosen_mask") + _sums(batch, "rejected_mask")
    longest = prompt + np.maximum(chosen, rejected)
    pairs = sum(attended(each, prompt) for each in (chosen, rejected)) + attended(prompt, 0 * prompt)
    keys = np.where(prompt > 0, 2 * prompt + chosen + rejected, 0)
    unshared = 2 * prompt + chosen + rejected
    return prompt + chosen + rejected, targets, unshared, longest, np.full_like(prompt, 2), keys, pairs


def _of_documents(batch: pa.RecordBatch) -> tuple[Numbers, ...]:
    tokens, targets = _counts(batch, "input_ids"), _sums(batch, "loss_mask")
    nothing = np.zeros_like(tokens)
    if "lengths" not in batch.schema.names:
        return tokens, targets, tokens, tokens, nothing + 1, nothing, attended(tokens, nothing)
    pieces = batch.column("lengths")
    sizes = pieces.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(_counts(batch, "lengths"))[:-1]])
    pairs = np.add.reduceat(attended(sizes, 0 * sizes), starts)
    return tokens, targets, tokens, np.maximum.reduceat(sizes, starts), _counts(batch, "lengths"), nothing, pairs


def attended(length: Numbers, before: Numbers) -> Numbers:
    """Pairs of a query and a key in segments of a length that continue so many tokens: L · (L + 1) / 2 + L · before."""
    found: Numbers = length * (length + 1) // 2 + length * before
    return found


def _counts(batch: pa.RecordBatch, name: str) -> Numbers:
    return np.asarray(pc.list_value_length(batch.column(name)).to_numpy(zero_copy_only=False), dtype=np.int64)


def _sums(batch: pa.RecordBatch, name: str) -> Numbers:
    column = batch.column(name)
    offsets = column.offsets.to_numpy()
    sums = np.concatenate([[0], np.cumsum(column.values.to_numpy(), dtype=np.int64)])
    return sums[offsets[1:]] - sums[offsets[:-1]]
