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
    """A max_length that leaves 99% of the rows whole, where there is one that holds and it leaves fewer."""
    if whole.kind == "prompts":
        return None
    longer = _longer_limits(whole, cuts, model)
    num_lost = cuts[-1].num_rows + cuts[-1].num_dropped if cuts else 0
    return longer[0] if longer and num_lost > _LOST * len(whole.rows) else None


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
        rows.append((name, *(f"{int(np.quantile(values, q, method='higher')):,}" for q in (0, 0.5, 0.9, 0.99, 1))))
    yield from table(rows)
    yield from histogram(longest, cuts[-1].limit if cuts else None, ink)
    for cut in cuts:
        given = "max_length" in config.explicit or whole.kind == "prompts"
        yield from _show_cut(cut, whole, "given" if given and cut is cuts[-1] else "default", ink)
    if whole.kind != "prompts":
        for limit in _longer_limits(whole, cuts, model):
            kept = f"{(longest <= limit).mean():.0%} of the" if (longest > limit).any() else "all"
            yield from item(ink.dim("→"), f"--max_length {limit} keeps {kept} rows whole")
    if whole.kind in ("preference", "reward"):
        share = float((lengths["chosen"] > lengths["rejected"]).mean())
        yield from item(ink.dim("·"), f"chosen is longer than rejected in {share:.0%} of the pairs")
    yield from _show_room(whole, model, config, ink)


def _longer_limits(whole: Tokens, cuts: Sequence[Cut], model: Model) -> list[int]:
    """Limits above the one that holds: one that keeps 99% of the rows whole, and one that keeps all; as far as the
    model has positions."""
    if not cuts:
        return []
    longest, room = whole.longest(), model.positions or math.inf
    wanted = [int(np.quantile(longest, 1 - _LOST, method="higher")), int(longest.max())]
    limits = [int(min(math.ceil(length / _STEP) * _STEP, room)) for length in wanted if length > cuts[-1].limit]
    return [limit for limit in dict.fromkeys(limits) if limit > cuts[-1].limit]


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


def _show_room(whole: Tokens, model: Model, config: CommonConfig, ink: Ink) -> Iterator[str]:
    """What the model has no positions for."""
    if model.positions is None:
        return
    longest, limit = whole.longest(), prompt_limit(whole, model, config)
    beyond = int((longest > (limit or model.positions)).sum())
    if limit is not None:
        text = (
            f"{beyond:,} prompts are longer than {limit:,} tokens, which is what max_completion_length leaves of the "
            f"{model.positions:,} positions of the model: training refuses them without --max_prompt_tokens {limit} "
            "--long_prompts drop (or truncate_left)"
        )
        yield from item(ink.bad("✗"), text)
    elif beyond:
        yield from item(
            ink.warn("!"), f"{beyond:,} rows are longer than the {model.positions:,} positions of the model"
        )


def prompt_limit(whole: Tokens, model: Model, config: Any) -> int | None:
    """The longest prompt that leaves room for a completion, where one is longer and nothing is said about it.

    Args:
        whole: the rows; only prompts have such a limit.
        model: which has so many positions.
        config: of the method.
    """
    if whole.kind != "prompts" or model.positions is None or config.max_prompt_tokens is not None:
        return None
    limit = max(1, model.positions - config.max_completion_length)
    return limit if whole.longest().max() > limit else None
