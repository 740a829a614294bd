"""A whole data set, tokenised into a folder of the cache, and what is to be said about it."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.data import store
from posttrain.data.arrange import Documents, arrange, packed_batches
from posttrain.data.formats import parse_preference, parse_sft
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
from posttrain.errors import UserError

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
_DROPPED = {
    "rows_dropped_no_target": "no token to train on",
    "rows_dropped_prompt_too_long": "the prompt fills --max_length {max_length} and leaves no token to train on",
    "rows_dropped_pair_too_long": "a side is longer than --max_length {max_length}",
    "rows_dropped_long_prompt": "the prompt is longer than --max_prompt_tokens {max_length}",
}
_ABOUT_TARGETS = ("rows_prompt_not_prefix", "rows_dropped_no_target", "rows_dropped_prompt_too_long")
_COUNTED = {
    "sft": _ABOUT_TARGETS,
    "preference": _ABOUT_TARGETS,
    "reward": ("rows_dropped_pair_too_long",),
    "prompts": ("rows_dropped_long_prompt",),
}
_ROWS_AT_ONCE, _LETTERS_AT_ONCE = 1024, 2**25
_PLACES_SHOWN = 3


@dataclass
class Totals:
    """What is known of the rows that have been tokenised.

    Args:
        counts: as for PreparedData.
        dropped: the first places of rows left out, by the name of the count.
        last_trained: how often each token was the last one trained on in a sequence.
        problems: rows that cannot be used.
    """

    counts: Counter[str] = field(default_factory=Counter)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    last_trained: Counter[int] = field(default_factory=Counter)
    problems: Problems = field(default_factory=Problems)

    def add(self, batch: Tokenised) -> None:
        """Take a batch over."""
        self.counts.update(batch.counts)
        self.last_trained.update(batch.last_trained)
        for name, places in batch.dropped.items():
            shown = self.dropped.setdefault(name, [])
            shown += places[: _PLACES_SHOWN - len(shown)]


def build(
    folder: Path, source: Source, tokenizer: Any, kind: str, options: Options, processes: int | None = None
) -> None:
    """Fill a folder of the cache.

    Args:
        folder: empty.
        source: of the rows.
        tokenizer: of the model.
        kind: of the rows.
        options: what to make of them.
        processes: that tokenise, as for `team_of_file`; the result is the same for any number.
    """
    totals = new_totals(kind)
    as_they_come = options.packing is None and options.shuffle_seed is None
    rows, unordered = folder / store.ROWS, folder / "documents.arrow"
    team = team_of_file(partial(tokenise, tokenizer, kind, options), processes)
    with closing(team), bar(f"Tokenising {source.name}", expected_rows(source)) as shown:
        batches = tokenised_batches(source.rows(), 0, team, kind, options, totals, shown.update)
        if as_they_come:
            batches = counted(batches, kind, tokenizer.eos_token_id, totals.counts)
        store.write_rows(rows if as_they_come else unordered, _SCHEMA[kind], batches)
    number = totals.counts["rows_read"]
    totals.problems.raise_if_any(source.name, "the only row" if number == 1 else f"{number:,} rows")
    if not as_they_come:
        _lay_out(unordered, rows, kind, tokenizer, options, totals, source.name)
        unordered.unlink()
    check_something_left(totals, source, options)
    store.write_about(
        folder, {"counts": dict(sorted(totals.counts.items())), "notes": notes_of(totals, tokenizer, options)}
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


def new_totals(kind: str) -> Totals:
    """Of no rows yet."""
    return Totals(Counter(dict.fromkeys(("rows_truncated", "tokens_truncated", *_COUNTED[kind]), 0)))


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


def check_something_left(totals: Totals, source: Source, options: Options) -> None:
    """Raises UserError where no row is left to train on."""
    if totals.counts["rows"]:
        return
    reasons = [
        f"{_DROPPED[name].format(max_length=options.max_length)} (first: {', '.join(places)})"
        for name, places in totals.dropped.items()
    ]
    num_rows = f"{totals.counts['rows_read']:,}"
    raise UserError(
        f"{source.name}: of {num_rows} rows none is left to train on: {'; '.join(reasons)}", "troubleshooting.md#data"
    )


def notes_of(totals: Totals, tokenizer: Any, options: Options) -> list[str]:
    """What the user is to be told of rows dropped or cut, and of what is never trained on."""
    notes, counts = [], totals.counts
    for name, places in totals.dropped.items():
        reason = _DROPPED[name].format(max_length=options.max_length)
        notes.append(f"{counts[name]:,} of {counts['rows_read']:,} rows dropped, {reason} (first: {', '.join(places)})")
    if counts["rows_truncated"]:
        cut = f"{counts['rows_truncated']:,} of {counts['rows_read']:,} rows cut"
        flag = "max_length" if totals.last_trained else "max_prompt_tokens"
        notes.append(f"{cut} to --{flag} {options.max_length}, {counts['tokens_truncated']:,} tokens lost")
    if counts["rows_prompt_not_prefix"]:
        notes.append(
            f"{counts['rows_prompt_not_prefix']:,} rows: the last tokens of the prompt alone are not those before its "
            "completion (they merge, or the chat template changes them); they count as the completion's"
        )
    if totals.last_trained and not counts["eos_targets"]:
        note = f"the EOS token {tokenizer.eos_token!r} is never trained on, so the model will not learn to stop"
        last = totals.last_trained.most_common(1)[0][0]
        special = tokenizer.added_tokens_decoder.get(last)
        if special is not None and special.special:
            note += f"; rows end with {special.content!r}: --eos_token {special.content!r}"
        notes.append(note)
    return notes


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
