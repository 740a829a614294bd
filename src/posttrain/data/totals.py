"""What is known of all rows of a data set together, and what the user is to be told of that."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from posttrain.data.problems import Problems
from posttrain.data.sources import Source
from posttrain.data.tokenised import Options, Tokenised
from posttrain.errors import UserError

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

    @classmethod
    def of(cls, note: dict[str, Any]) -> "Totals":
        """What was noted of rows without problems."""
        last_trained = {int(token): count for token, count in note["last_trained"].items()}
        return cls(Counter(note["counts"]), note["dropped"], Counter(last_trained))

    def to_note(self) -> dict[str, Any]:
        """As plain data."""
        assert not self.problems
        known = {"counts": self.counts, "dropped": self.dropped, "last_trained": self.last_trained}
        return {**known, "is_whole": False}

    def add(self, batch: Tokenised) -> None:
        """Take a batch over."""
        self.counts.update(batch.counts)
        self.last_trained.update(batch.last_trained)
        for name, places in batch.dropped.items():
            shown = self.dropped.setdefault(name, [])
            shown += places[: _PLACES_SHOWN - len(shown)]


def new_totals(kind: str) -> Totals:
    """Of no rows yet."""
    return Totals(Counter(dict.fromkeys(("rows_truncated", "tokens_truncated", *_COUNTED[kind]), 0)))


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
