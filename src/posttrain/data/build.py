"""A whole data set, tokenised into a folder of the cache, and what is to be said about it."""

import itertools
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from posttrain.data import store
from posttrain.data.arrange import Documents, arrange, packed_batches
from posttrain.data.formats import parse_preference, parse_sft
from posttrain.data.journal import Journal
from posttrain.data.json_text import letters_in
from posttrain.data.packing import Numbers
from posttrain.data.parallel import Batch, Team, in_order, team_of_file
from posttrain.data.preference import tokenise_preference
from posttrain.data.problems import Problems, RowError
from posttrain.data.progress import bar
from posttrain.data.prompts import parse_prompt, tokenise_prompts
from posttrain.data.readers import Row
from posttrain.data.reward import tokenise_reward
from posttrain.data.sft import tokenise_sft
from posttrain.data.size import expected_rows
from posttrain.data.sources import Source
from posttrain.data.tokenised import Options, Tokenised
from posttrain.data.totals import Totals, check_something_left, new_totals, notes_of
from posttrain.disk import in_words
from posttrain.errors import UserError

logger = logging.getLogger(__name__)

Columns = dict[str, list[Any]]

_TOKENISE: dict[str, Callable[[Any, Sequence[Row], Options, int], Tokenised]] = {
    "sft": tokenise_sft,
    "preference": tokenise_preference,
    "reward": tokenise_reward,
    "prompts": tokenise_prompts,
}
_SCHEMA = {
    "sft": store.DOCUMENTS,
    "preference": store.PAIRS,
    "reward": store.WHOLE_PAIRS,
    "prompts": store.PROMPTS,
}
_IDS_AND_MASK = {
    "sft": (("input_ids", "loss_mask"),),
    "preference": (("chosen_ids", "chosen_mask"), ("rejected_ids", "rejected_mask")),
    "reward": (),
    "prompts": (),
}
_ROWS_AT_ONCE, _LETTERS_AT_ONCE = 1024, 2**25


def build(
    folder: Path, source: Source, tokenizer: Any, kind: str, options: Options, processes: int | None = None
) -> None:
    """Fill a folder of the cache.

    Args:
        folder: empty, or as a process that was ended has left it.
        source: of the rows.
        tokenizer: of the model.
        kind: of the rows.
        options: what to make of them.
        processes: that tokenise, as for `team_of_file`; the result is the same for any number.
    """
    as_they_come = options.packing is None and options.shuffle_seed is None
    rows, unordered = folder / store.ROWS, folder / "documents.arrow"
    journal, file = Journal(folder), rows if as_they_come else unordered
    note = journal.begun(file)
    totals = new_totals(kind) if note is None else Totals.of(note)
    if note is not None:
        read = f"{totals.counts['rows_read']:,} rows have"
        logger.info("%s: %s been tokenised by a process that was ended; going on from there", source.name, read)
    if note is None or not note["is_whole"]:
        _write_in_order(file, source, tokenizer, kind, options, processes, totals, journal, note)
    if not as_they_come:
        _lay_out(unordered, rows, kind, tokenizer, options, totals, source.name)
        unordered.unlink()
    journal.close()
    check_something_left(totals, source, options)
    store.write_about(
        folder, {"counts": dict(sorted(totals.counts.items())), "notes": notes_of(totals, tokenizer, options)}
    )


def _write_in_order(
    file: Path,
    source: Source,
    tokenizer: Any,
    kind: str,
    options: Options,
    processes: int | None,
    totals: Totals,
    journal: Journal,
    note: dict[str, Any] | None,
) -> None:
    """Rows in tokens, in the order in which they are read, from where a note says that they are written."""
    read, written = totals.counts["rows_read"], 0 if note is None else note["written"]
    expected, is_laid_out = expected_rows(source), file.name != store.ROWS
    noting = journal.noting(totals.to_note)

    def told(so_far: BinaryIO) -> None:
        if noting(so_far):
            _check_room(file.parent, so_far.tell(), totals.counts["rows_read"], expected, is_laid_out)

    team = team_of_file(partial(tokenise, tokenizer, kind, options), processes)
    with closing(team), bar(f"Tokenising {source.name}", expected) as shown:
        shown.update(read)
        batches = tokenised_batches(source.rows(read), read, team, kind, options, totals, shown.update)
        if not is_laid_out:
            batches = counted(batches, kind, tokenizer.eos_token_id, totals.counts)
        store.write_rows(file, _SCHEMA[kind], batches, written, told)
    number = totals.counts["rows_read"]
    totals.problems.raise_if_any(source.name, "the only row" if number == 1 else f"{number:,} rows")
    with open(file, "rb") as whole:
        whole.seek(0, os.SEEK_END)
        journal.note(whole, totals.to_note() | {"is_whole": True})


def _check_room(folder: Path, written: int, read: int, expected: int | None, is_laid_out: bool) -> None:
    """Raises UserError where the disk has no room for what is still to be written, as far as that can be told. Rows
    that are shuffled or packed are written twice, and the first copy goes when the second is there."""
    if expected is None:
        return
    all_rows = written / read * max(read, expected)
    more, free = all_rows * (2 if is_laid_out else 1) - written, shutil.disk_usage(folder).free
    if more > free:
        raise UserError(
            f"--cache_dir {folder.parent.parent}: {expected:,} rows take about {in_words(more)} more while they are "
            f"prepared, and there is room for {in_words(free)}; make room, or name a folder on another disk"
        )


def _lay_out(
    unordered: Path, rows: Path, kind: str, tokenizer: Any, options: Options, totals: Totals, name: str
) -> None:
    """Documents in the order in which they were read to rows: shuffled, packed, or both."""
    documents = Documents.open(unordered)
    order: Numbers = np.arange(len(documents), dtype=np.int32)
    if options.shuffle_seed is not None:
        order = np.random.default_rng(options.shuffle_seed).permutation(len(documents))
    layout = arrange(documents, options.packing, options.max_length, order)
    with bar(f"{'Shuffling' if options.packing is None else 'Packing'} {name}", len(layout)) as shown:
        columns = _told(packed_batches(documents, layout), shown)
        schema = _SCHEMA[kind] if options.packing is None else store.PACKED
        store.write_rows(rows, schema, counted(columns, kind, tokenizer.eos_token_id, totals.counts))
    left_out = int(documents.lengths.sum(dtype=np.int64)) - totals.counts["tokens"]
    totals.counts["tokens_left_out"] = left_out


def _told(batches: Iterator[Columns], shown: Any) -> Iterator[Columns]:
    for columns in batches:
        shown.update(len(columns["input_ids"]))
        yield columns


def tokenise(tokenizer: Any, kind: str, options: Options, rows: Sequence[Row], first_row: int) -> Tokenised:
    """Rows of any kind in tokens.

    Args:
        tokenizer: of the model.
        kind: of the rows.
        options: what to make of them.
        rows: at most a few thousand.
        first_row: index of the first one in the data set.
    """
    return _TOKENISE[kind](tokenizer, rows, options, first_row)


def tokenised_batches(
    rows: Iterator[Row],
    first_row: int,
    team: Team,
    kind: str,
    options: Options,
    totals: Totals,
    tell: Callable[[int], object] = lambda number: None,
) -> Iterator[Columns]:
    """Rows in tokens, some at a time. After the first one that cannot be used, the others are only looked through.

    Args:
        rows: what is to be tokenised.
        first_row: index of the first one in the data set.
        team: tokenises.
        kind: of the rows.
        options: what to make of them.
        totals: is told of everything.
        tell: is told how many more rows have been done with.
    """
    begun = first_row

    def begin(batch: Batch) -> Callable[[], Tokenised]:
        nonlocal begun
        first, begun = begun, begun + len(batch)
        return Tokenised if totals.problems else team.begin(batch, first)

    for batch, result_of in in_order(_in_batches(rows), begin, team.ahead):
        totals.counts["rows_read"] += len(batch)
        if totals.problems:
            check_rows(batch, kind, options, totals.problems)
        else:
            result = result_of()
            totals.problems.update(result.problems)
            totals.add(result)
            if result.columns and not totals.problems:
                yield result.columns
        tell(len(batch))


def _in_batches(rows: Iterator[Row]) -> Iterator[Batch]:
    while batch := list(_at_once(rows)):
        yield batch


def _at_once(rows: Iterator[Row]) -> Iterator[Row]:
    """So many of the next rows as are tokenised together; fewer of long ones, whose tokens take many times their
    memory."""
    letters = 0
    for row in itertools.islice(rows, _ROWS_AT_ONCE):
        yield row
        letters += letters_in(row.columns)
        if letters > _LETTERS_AT_ONCE:
            return


def counted(batches: Iterable[Columns], kind: str, eos: int, counts: Counter[str]) -> Iterator[Columns]:
    """Passes batches on, and counts what training will see in `counts`."""
    for columns in batches:
        counts["rows"] += len(next(iter(columns.values())))
        without_mask = {name for name in columns if name.endswith("_ids")} - {ids for ids, _ in _IDS_AND_MASK[kind]}
        counts["tokens"] += sum(len(ids) for name in without_mask for ids in columns[name])
        for ids_name, mask_name in _IDS_AND_MASK[kind]:
            ids, mask = np.concatenate(columns[ids_name]), np.concatenate(columns[mask_name]) != 0
            counts["tokens"] += len(ids)
            counts["targets"] += int(mask.sum())
            counts["eos_targets"] += int((ids[mask] == eos).sum())
        yield columns


def check_rows(rows: Iterable[Row], kind: str, options: Options, problems: Problems) -> None:
    """Look whether rows have one of the formats of their kind; what has not goes to `problems`."""
    for row in rows:
        try:
            if kind == "sft":
                parse_sft(row.columns, options.text_field)
            elif kind == "prompts":
                parse_prompt(row.columns)
            else:
                parse_preference(row.columns)
        except RowError as error:
            problems.add(row.place, error)
