"""How long rows are, what max_length takes from them, and which would take less."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from posttrain.config import CommonConfig
from posttrain.config.fields import flags_of
from posttrain.data.tokenised import Options
from posttrain.inspection.display import Ink, histogram, item, table
from posttrain.inspection.model import Model
from posttrain.inspection.tokens import Cut, Tokens, cut_by

_STEP = 64  # max_length is proposed in multiples of this
_LOST = 0.01  # share of rows that may be cut before another max_length is proposed


def cuts_of(config: CommonConfig, tokenizer: Any, whole: Tokens, options: Options) -> list[Cut]:
    """What the default's limit does and what the one that holds does; the latter comes last.

    Args:
        config: of the method.
        tokenizer: of the model.
        whole: the rows without a limit.
        options: of the method.
    """
    limits: list[Any] = [flags_of(type(config))["max_length"].default] if hasattr(config, "max_length") else []
    limits = [*dict.fromkeys([*limits, options.max_length])]
    return [cut_by(limit, tokenizer, whole, options) for limit in limits if limit is not None]


def better_limit(whole: Tokens, cuts: Sequence[Cut], model: Model) -> int | None:
    """A max_length that leaves 99% of the rows whole, where the one that holds leaves fewer."""
    longer = _longer_limits(whole, cuts, model)
    num_lost = cuts[-1].num_rows + cuts[-1].num_dropped if cuts else 0
    return longer[0] if longer is not None and num_lost > _LOST * len(whole.rows) else None


def show_lengths(whole: Tokens, cuts: Sequence[Cut], model: Model, config: CommonConfig, ink: Ink) -> Iterator[str]:
    """The section of the report.

    Args:
        whole: the rows without a limit.
        cuts: from cuts_of.
        model: which has so many positions.
        config: of the method.
        ink: colours.
    """
    lengths = whole.lengths()
    longest = whole.longest()
    total = sum(int(lengths[name].sum()) for name in whole.parts)
    yield f"{ink.bold('Lengths')}  {ink.dim(f'in tokens; {total:,} in all')}"
    rows: list[tuple[str, ...]] = [("", "min", "median", "90%", "99%", "max")]
    for name, values in lengths.items():
        rows.append((name, *(f"{round(float(np.quantile(values, q))):,}" for q in (0, 0.5, 0.9, 0.99, 1))))
    yield from table(rows)
    yield from histogram(longest, cuts[-1].limit if cuts else None, ink)
    for cut in cuts:
        given = "max_length" in config.explicit or whole.kind == "prompts"
        yield from _show_cut(cut, whole, "given" if given and cut is cuts[-1] else "default", ink)
    longer = _longer_limits(whole, cuts, model)
    if longer is not None and whole.kind != "prompts":
        most, whole_lot = longer
        text = f"99% of the rows whole, {whole_lot} all of them" if most < whole_lot else "all rows whole"
        yield from item(ink.dim("→"), f"--max_length {most} keeps {text}")
    if whole.kind in ("preference", "reward"):
        share = float((lengths["chosen"] > lengths["rejected"]).mean())
        yield from item(ink.dim("·"), f"chosen is longer than rejected in {share:.0%} of the pairs")
    if model.positions is not None:
        yield from _show_room(longest, model.positions, whole.kind, config, ink)


def _longer_limits(whole: Tokens, cuts: Sequence[Cut], model: Model) -> tuple[int, int] | None:
    """Limits that keep 99% of the rows whole, and all of them, where the one that holds does not."""
    longest = whole.longest()
    if not cuts or cuts[-1].limit >= longest.max():
        return None
    room = model.positions or math.inf
    most, all_of_them = float(np.quantile(longest, 1 - _LOST)), float(longest.max())
    limits = [int(min(math.ceil(length / _STEP) * _STEP, room)) for length in (most, all_of_them)]
    return limits[0], limits[1]


def _show_cut(cut: Cut, whole: Tokens, origin: str, ink: Ink) -> Iterator[str]:
    num_rows = len(whole.rows)
    name = "max_prompt_tokens" if whole.kind == "prompts" else "max_length"
    head = f"{name} {cut.limit} ({origin})"
    if not cut.num_rows and not cut.num_dropped:
        yield from item(ink.good("✓"), f"{head} takes nothing away")
        return
    parts = []
    if cut.num_rows:
        share = cut.num_tokens / whole.num_limited_tokens()
        rows = f"cuts {cut.num_rows:,} of {num_rows:,} rows ({cut.num_rows / num_rows:.1%})"
        parts.append(f"{rows}, which lose {cut.num_tokens:,} tokens ({share:.1%} of all)")
    if cut.num_dropped:
        parts.append(f"leaves {cut.num_dropped:,} of {num_rows:,} rows out ({cut.num_dropped / num_rows:.1%})")
    yield from item(ink.warn("!"), f"{head} {' and '.join(parts)}")


def _show_room(longest: Any, positions: int, kind: str, config: Any, ink: Ink) -> Iterator[str]:
    """What the model has no positions for."""
    beyond = int((longest > positions).sum())
    if beyond:
        yield from item(ink.warn("!"), f"{beyond:,} rows are longer than the {positions:,} positions of the model")
    elif kind == "prompts" and positions - longest.max() < config.max_completion_length:
        text = (
            f"the longest prompt leaves {positions - int(longest.max()):,} of {positions:,} positions, less than "
            f"max_completion_length {config.max_completion_length}; lower it, or give --max_prompt_tokens"
        )
        yield from item(ink.bad("✗"), text)
