"""What the methods' ways of tokenising have in common: the options, the result of a batch, and the cut to length."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from posttrain.data.problems import Problems


@dataclass(frozen=True)
class Options:
    """The flags that decide what rows become; part of the cache's key.

    Args:
        max_length: tokens of a sequence; None = as long as it is.
        keep_end: cut long ones at the front, not at the end.
        text_field: column with plain text.
        completion_only: train on the completion alone; None = where there is one.
        assistant_only: train on the assistant's messages alone.
        packing: None, or the strategy.
        shuffle_seed: put documents into a random order, before they are packed; None = leave them.
        long_prompts: what happens to a prompt above max_length: drop, truncate_left or error.
        template_kwargs: further variables for the chat template, as JSON.
    """

    max_length: int | None
    keep_end: bool
    text_field: str = "text"
    completion_only: bool | None = None
    assistant_only: bool = False
    packing: str | None = None
    shuffle_seed: int | None = None
    long_prompts: str = "error"
    template_kwargs: str = "{}"

    def kept(self, length: int) -> slice:
        """What is left of a sequence of `length` tokens."""
        # The other strategies of packing cut for themselves, and lose nothing.
        if self.max_length is None or length <= self.max_length or self.packing not in (None, "bfd"):
            return slice(0, length)
        return slice(length - self.max_length, length) if self.keep_end else slice(0, self.max_length)


@dataclass
class Tokenised:
    """A batch of rows in tokens.

    A row without a token to train on is left out and counted: `rows_dropped_no_target` had none from the start,
    `rows_dropped_prompt_too_long` lost them to `max_length`.

    Args:
        columns: name → one array, or one number, a row.
        counts: rows_truncated, tokens_truncated, rows_dropped_*, and rows_prompt_not_prefix: the tokens of a given
            prompt are not how prompt + completion begins, so the completion starts before the prompt's end.
        dropped: places of the rows left out, by the name of the count.
        last_trained: how often each token was the last one trained on in a sequence.
        problems: rows that cannot be used; if there are any, the columns are not complete.
    """

    columns: dict[str, list[Any]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    last_trained: Counter[int] = field(default_factory=Counter)
    problems: Problems = field(default_factory=Problems)

    def append(self, **values: Any) -> None:
        """Add a row to the columns."""
        for name, value in values.items():
            self.columns.setdefault(name, []).append(value)

    def drop(self, count: str, place: str) -> None:
        """Leave a row out."""
        self.counts[count] += 1
        self.dropped.setdefault(count, []).append(place)

    def count_truncated(self, num_tokens: int) -> None:
        """Note that a row lost `num_tokens` to max_length."""
        if num_tokens:
            self.counts["rows_truncated"] += 1
            self.counts["tokens_truncated"] += num_tokens
