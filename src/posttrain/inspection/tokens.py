"""Rows in tokens, by the functions that training uses: how long they are, and what a limit takes from them."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from posttrain.data.preference import tokenise_preference
from posttrain.data.problems import Problems
from posttrain.data.prompts import tokenise_prompts
from posttrain.data.readers import Row
from posttrain.data.reward import tokenise_reward
from posttrain.data.sft import tokenise_sft
from posttrain.data.tokenised import Options, Tokenised

Lengths = npt.NDArray[np.int64]

_TOKENISE: dict[str, Callable[[Any, Sequence[Row], Options, int], Tokenised]] = {
    "sft": tokenise_sft,
    "preference": tokenise_preference,
    "reward": tokenise_reward,
    "prompts": tokenise_prompts,
}
_ROWS_AT_ONCE = 256


@dataclass
class Tokens:
    """Rows in tokens.

    Args:
        kind: "sft", "preference", "reward" or "prompts".
        rows: those that could be tokenised and have something to train on.
        columns: of these, as the tokenise functions name them.
        counts: what happened to rows, as in PreparedData.
        problems: of the rows that could not.
        last_trained: how often each token was the last one trained on in a sequence.
    """

    kind: str
    rows: list[Row] = field(default_factory=list)
    columns: dict[str, list[Any]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    problems: Problems = field(default_factory=Problems)
    last_trained: Counter[int] = field(default_factory=Counter)

    def lengths(self) -> dict[str, Lengths]:
        """Tokens of each row, by what is counted."""
        own = {name: _sizes(values) for name, values in self.columns.items() if name.endswith("_ids")}
        nothing = _sizes([])
        if self.kind == "sft":
            trained = [int(mask[1:].sum()) for mask in self.columns.get("loss_mask", [])]
            return {"row": own.get("input_ids", nothing), "of it trained on": np.array(trained, dtype=np.int64)}
        prompt = own.get("prompt_ids", nothing)
        if self.kind == "prompts":
            return {"prompt": prompt}
        chosen, rejected = own.get("chosen_ids", nothing), own.get("rejected_ids", nothing)
        longer = prompt + np.maximum(chosen, rejected)
        return {"longer side of a pair": longer, "prompt": prompt, "chosen": chosen, "rejected": rejected}

    def longest(self) -> Lengths:
        """Tokens of each row that a limit applies to."""
        return next(iter(self.lengths().values()))

    @property
    def parts(self) -> tuple[str, ...]:
        """The lengths that add up to all tokens."""
        return {"sft": ("row",), "prompts": ("prompt",)}.get(self.kind, ("prompt", "chosen", "rejected"))

    def num_limited_tokens(self) -> int:
        """All tokens that a limit may cut: the two sides of a pair are cut apart, each with its prompt."""
        lengths = self.lengths()
        is_pair = len(self.parts) > 1
        return sum(int(lengths[name].sum()) * (1 + (is_pair and name == "prompt")) for name in self.parts)


def _sizes(values: Sequence[Any]) -> Lengths:
    return np.array([len(value) for value in values], dtype=np.int64)


def tokenised(tokenizer: Any, rows: Sequence[Row], kind: str, options: Options) -> Tokens:
    """Tokenise rows; one that cannot be does not keep the others from it.

    Args:
        tokenizer: of the model.
        rows: that fit the kind.
        kind: "sft", "preference", "reward" or "prompts".
        options: of the method.
    """
    tokens = Tokens(kind)
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        batch = rows[first : first + _ROWS_AT_ONCE]
        result = _TOKENISE[kind](tokenizer, batch, options, first)
        if not result.problems:
            _take(tokens, batch, result)
            continue
        for index, row in enumerate(batch):
            _take(tokens, [row], _TOKENISE[kind](tokenizer, [row], options, first + index))
    return tokens


def _take(tokens: Tokens, rows: Sequence[Row], result: Tokenised) -> None:
    tokens.problems.update(result.problems)
    if result.problems:
        return
    dropped = {place for places in result.dropped.values() for place in places}
    tokens.rows += [row for row in rows if row.place not in dropped]
    tokens.counts.update(result.counts)
    tokens.last_trained.update(result.last_trained)
    for name, values in result.columns.items():
        tokens.columns.setdefault(name, []).extend(values)


@dataclass(frozen=True)
class Cut:
    """What a limit does.

    Args:
        limit: tokens.
        num_rows: rows that it cuts.
        num_tokens: tokens that these lose.
        num_dropped: rows that it leaves nothing of to train on, or that are left out for their length.
    """

    limit: int
    num_rows: int
    num_tokens: int
    num_dropped: int


def cut_by(limit: int, tokenizer: Any, whole: Tokens, options: Options) -> Cut:
    """Tokenise the rows that are longer than a limit once more, with it.

    Args:
        limit: tokens.
        tokenizer: of the model.
        whole: the rows without a limit.
        options: of the method.
    """
    long_rows = [row for row, length in zip(whole.rows, whole.longest(), strict=True) if length > limit]
    limited = tokenised(tokenizer, long_rows, whole.kind, dataclasses.replace(options, max_length=limit))
    num_refused = sum(count for count, _, _ in limited.problems.found.values())
    counts = limited.counts
    num_dropped = len(long_rows) - len(limited.rows) - num_refused
    return Cut(limit, counts["rows_truncated"], counts["tokens_truncated"], num_dropped + num_refused)
