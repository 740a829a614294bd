"""A whole data set, tokenised into a folder of the cache, and what is to be said about it."""

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.data import store
from posttrain.data.arrange import Documents, arrange, packed_batches
from posttrain.data.formats import parse_preference, parse_sft
from posttrain.data.json_text import letters_in
from posttrain.data.preference import tokenise_preference
from posttrain.data.problems import Problems, RowError
from posttrain.data.prompts import parse_prompt, tokenise_prompts
from posttrain.data.readers import Row
from posttrain.data.reward import tokenise_reward
from posttrain.data.sft import tokenise_sft
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
_SECONDS_BEFORE_BAR = 3.0
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


def build(folder: Path, source: Source, tokenizer: Any, kind: str, options: Options) -> None:
    """Fill a folder of the cache."""
    totals = new_totals(kind)
    batches = _tokenised_batches(source, tokenizer, kind, options, totals)
    rows = folder / store.ROWS
    if options.packing is None and options.shuffle_seed is None:
        store.write_rows(rows, _SCHEMA[kind], counted(batches, kind, tokenizer.eos_token_id, totals.counts))
    else:
        in_order = folder / "documents.arrow"
        store.write_rows(in_order, _SCHEMA[kind], batches)
        documents = Documents.open(in_order)
        order = list(range(len(documents.lengths)))
        if options.shuffle_seed is not None:
            order = np.random.default_rng(options.shuffle_seed).permutation(len(order)).tolist()
        packed = packed_batches(documents, arrange(documents, options.packing, options.max_length, order))
        schema = _SCHEMA[kind] if options.packing is None else store.PACKED
        store.write_rows(rows, schema, counted(packed, kind, tokenizer.eos_token_id, totals.counts))
        totals.counts["tokens_left_out"] = sum(documents.lengths) - totals.counts["tokens"]
        in_order.unlink()
    check_something_left(totals, source, options)
    store.write_about(
        folder, {"counts": dict(sorted(totals.counts.items())), "notes": notes_of(totals, tokenizer, options)}
    )


def new_totals(kind: str) -> Totals:
    """Of no rows yet."""
    return Totals(Counter(dict.fromkeys(("rows_truncated", "tokens_truncated", *_COUNTED[kind]), 0)))


def _tokenised_batches(
    source: Source, tokenizer: Any, kind: str, options: Options, totals: Totals
) -> Iterator[Columns]:
    from tqdm import tqdm

    bar = tqdm(
        source.rows(),
        desc=f"Tokenising {source.name}",
        unit=" rows",
        delay=_SECONDS_BEFORE_BAR,
        disable=None if is_first_process() else True,
    )
    yield from tokenised_batches(iter(bar), 0, tokenizer, kind, options, totals)
    number = totals.counts["rows_read"]
    totals.problems.raise_if_any(source.name, "the only row" if number == 1 else f"{number:,} rows")


def tokenised_batches(
    rows: Iterator[Row], first_row: int, tokenizer: Any, kind: str, options: Options, totals: Totals
) -> Iterator[Columns]:
    """Rows in tokens, some at a time. After the first one that cannot be used, the others are only looked through.

    Args:
        rows: what is to be tokenised.
        first_row: index of the first one in the data set.
        tokenizer: of the model.
        kind: of the rows.
        options: what to make of them.
        totals: is told of everything.
    """
    while batch := list(_at_once(rows)):
        totals.counts["rows_read"] += len(batch)
        if totals.problems:
            check_rows(batch, kind, options, totals.problems)
            continue
        result = _TOKENISE[kind](tokenizer, batch, options, first_row)
        first_row += len(batch)
        totals.problems.update(result.problems)
        totals.add(result)
        if result.columns and not totals.problems:
            yield result.columns


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


def is_first_process() -> bool:
    """Whether this is the process of its machine that speaks to the user."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
