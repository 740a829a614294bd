"""The report of `posttrain inspect`: what the rows are, and then, for one method, what a model makes of them."""

import dataclasses
from collections.abc import Iterator
from itertools import islice

from posttrain.config import METHODS
from posttrain.config.paths import check_model
from posttrain.data.json_text import shortened
from posttrain.data.prepare import options_of
from posttrain.data.problems import Problems
from posttrain.data.splits import open_source
from posttrain.hub_access import check_readable, take_token
from posttrain.inspection.display import Ink, ink_for, item
from posttrain.inspection.options import Request
from posttrain.inspection.rows import (
    Column,
    Fit,
    Sample,
    describe_columns,
    duplicates,
    fit_of,
    likely_columns,
    read_sample,
)
from posttrain.terminal import visible

_NEEDS = {
    "sft": "messages, or prompt and completion, or text, or conversations, or input_ids",
    "preference": "chosen and rejected (and prompt, unless they begin with it)",
    "prompts": "prompt",
}
_OWN_COLUMNS = {
    "sft": "messages conversations prompt completion text input_ids labels completion_mask assistant_masks".split(),
    "preference": ["prompt", "chosen", "rejected", "margin"],
    "prompts": ["prompt"],
}
_FOR_TEMPLATE = ("tools", "chat_template_kwargs")
_NAMES = {
    "sft": "sft",
    "preference": "preference training (dpo, reward)",
    "prompts": "reinforcement learning (grpo, rloo)",
}
_SHOWN = 3
_COLUMNS, _NAME = 60, 60  # columns that are listed, and letters of their names


def print_report(request: Request) -> int:
    """Print the report.

    Args:
        request: the words of the user, understood.

    Returns:
        The exit code: 0 where the method (the one that was asked for, or the one that fits best) can train on the rows.
    """
    ink = ink_for(request.flags.color)
    for each in request.configs.values():
        take_token(each)
    config = request.any_config
    if request.has_model:
        check_model("model_name_or_path", str(config.model_name_or_path))
    check_readable(config if request.has_model else dataclasses.replace(config, model_name_or_path=None))
    source = open_source(config, "train")
    assert source is not None  # rows to train on are there or an error
    sample = read_sample(source, request.flags.num_rows)
    columns = describe_columns(sample.rows)
    of_kind = {_parsed_as(method): config for method, config in request.configs.items()}
    fits = {
        kind: fit_of(sample.rows, kind, options_of(config, config.data_kind, "train"))
        for kind, config in of_kind.items()
    }
    _print(_title(sample, ink), _columns(columns, len(sample.rows), ink), _methods(request, fits, columns, ink))
    _print(_repetitions(sample, ink))
    method = request.flags.method or _best(fits, columns)
    if method is None or not fits[_parsed_as(method)].rows:
        _print(_renaming(columns, ink))
        return 1
    fit = fits[_parsed_as(method)]
    from posttrain.inspection.details import details  # imports transformers

    is_sound, sections = details(request, method, fit.rows, list(columns), ink)
    for section in sections:
        _print(section)
    return 0 if is_sound and not fit.num_others else 1


def _print(*sections: Iterator[str]) -> None:
    """Sections with an empty line between them, shown at once: the next one may take seconds."""
    for section in sections:
        lines = list(section)
        if lines:
            print("\n".join(lines), end="\n\n", flush=True)


def _parsed_as(method: str) -> str:
    """The kind of a method's rows; reward models are trained on the same as dpo."""
    kind = METHODS[method].data_kind
    return "preference" if kind == "reward" else kind


def _title(sample: Sample, ink: Ink) -> Iterator[str]:
    number = f"{len(sample.rows):,}"
    rows = "the only row" if len(sample.rows) == 1 else f"all {number} rows"
    read = rows if sample.is_whole else f"the first {number} rows; --num_rows none reads all"
    yield f"{ink.bold(visible(sample.name))}  {ink.dim(read)}"


def _columns(columns: dict[str, Column], num_rows: int, ink: Ink) -> Iterator[str]:
    yield ink.bold("Columns") + ("" if columns else "  none")
    kinds = [" or ".join(kind for kind, _ in column.kinds.most_common()) or "nothing" for column in columns.values()]
    names = [shortened(visible(name), _NAME) for name in islice(columns, _COLUMNS)]
    kinds = kinds[:_COLUMNS]
    widths = [max(map(len, texts), default=0) for texts in (names, kinds)]
    lines = [f"  {name:<{widths[0]}}  {kind:<{widths[1]}}" for name, kind in zip(names, kinds, strict=True)]
    for line, column in zip(lines, columns.values(), strict=False):
        missing = num_rows - column.kinds.total()
        notes = [f"{missing:,} without a value"] * bool(missing) + [f"{column.num_empty:,} empty"] * bool(
            column.num_empty
        )
        yield f"{line}  {ink.warn(', '.join(notes))}".rstrip()
    if len(columns) > _COLUMNS:
        yield ink.dim(f"  … and {len(columns) - _COLUMNS:,} more")


def _methods(request: Request, fits: dict[str, Fit], columns: dict[str, Column], ink: Ink) -> Iterator[str]:
    yield ink.bold("Methods")
    for kind, fit in fits.items():
        label = f"{', '.join(method for method in request.configs if _parsed_as(method) == kind):<13}"
        if not fit.num_others:
            yield from item(ink.good("✓"), f"{label}{_used(kind, columns)}")
        elif set(fit.problems.found) == {f"wrong columns for {_NAMES[kind]}"} and not fit.rows:
            yield from item(ink.bad("✗"), f"{label}needs {_NEEDS[kind]}")
        else:
            mark = ink.warn("!") if fit.rows else ink.bad("✗")
            total = len(fit.rows) + fit.num_others
            yield from item(
                mark, f"{label}{fit.num_others:,} of {total:,} rows cannot be used, and training begins with none"
            )
            yield from _problems(fit.problems)
    for method, error in request.refused.items():
        yield from item(ink.bad("✗"), f"{method:<13}{error}")


def _renaming(columns: dict[str, Column], ink: Ink) -> Iterator[str]:
    """What the columns might be called, where no method knows them as they are."""
    likely = likely_columns(columns)
    if not likely:
        return
    yield ink.bold("Names")
    renamed = ", ".join(f"{theirs} → {own}" for own, theirs in likely.items())
    yield from item(ink.dim("→"), f"rename what other data sets call differently: {renamed}")
    if {"prompt", "completion"} <= likely.keys() | columns.keys():
        text = "prompt and completion are for sft; with the answer alone as solution, grpo and accuracy_reward grade it"
        yield from item(ink.dim("·"), text)


def _problems(problems: Problems) -> Iterator[str]:
    for headline, (count, places, detail) in list(problems.found.items())[:_SHOWN]:
        more = f" and {count - len(places):,} more" if count > len(places) else ""
        yield from item(" ", f"{headline} ({', '.join(places)}{more}): {detail.splitlines()[0]}", indent=15)
    if len(problems.found) > _SHOWN:
        yield from item(" ", f"… and {len(problems.found) - _SHOWN} other mistakes", indent=15)


def _used(kind: str, columns: dict[str, Column]) -> str:
    own = [name for name in (*_OWN_COLUMNS[kind], *_FOR_TEMPLATE) if name in columns]
    others = [shortened(visible(name), _NAME) for name in columns if name not in own]
    if not others:
        return ", ".join(own)
    if len(others) > _COLUMNS:
        others[_COLUMNS:] = [f"… and {len(others) - _COLUMNS:,} more"]
    return f"{', '.join(own)}; {'the rewards get' if kind == 'prompts' else 'not used:'} {', '.join(others)}"


def _repetitions(sample: Sample, ink: Ink) -> Iterator[str]:
    whole = duplicates(sample.rows)
    prompts = duplicates([row for row in sample.rows if row.columns.get("prompt") is not None], "prompt")
    found = [("rows are", "all of an earlier one", whole)] * bool(whole)
    if len(prompts) > len(whole):
        found.append(("rows have", "the prompt of an earlier one", prompts))
    if found:
        yield ink.bold("Repetitions")
    for verb, what, pairs in found:
        (place, first), share = pairs[0], len(pairs) / len(sample.rows)
        number = f"{len(pairs):,} of {len(sample.rows):,} {verb}"
        yield from item(ink.warn("!"), f"{number} {what} ({share:.1%}); first: {place} = {first}")


def _best(fits: dict[str, Fit], columns: dict[str, Column]) -> str | None:
    """The method that rows were most likely made for: pairs have prompts too, and so have completions."""
    methods = {"preference": "dpo", "sft": "sft", "prompts": "grpo" if "solution" in columns else "rloo"}
    known = [kind for kind in methods if kind in fits and fits[kind].rows]
    return methods[max(known, key=lambda kind: len(fits[kind].rows))] if known else None
