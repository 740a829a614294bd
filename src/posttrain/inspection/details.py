"""What a model makes of the rows of one method: an example, lengths, findings, and commands to start with."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from posttrain.config import CommonConfig, PolicyConfig
from posttrain.data.prepare import options_of
from posttrain.data.readers import Row
from posttrain.data.splits import open_source
from posttrain.data.tokenised import Options
from posttrain.data.tokenizer import end_problem, read_tokenizer
from posttrain.errors import UserError
from posttrain.inspection.display import WIDTH, Ink, command, item, wrapped
from posttrain.inspection.example import CLOSE, OPEN, segments_of, show_segment
from posttrain.inspection.findings import Finding, findings
from posttrain.inspection.lengths import better_limit, cuts_of, prompt_limit, show_lengths
from posttrain.inspection.model import Model, describe_model
from posttrain.inspection.options import Request
from posttrain.inspection.start import Facts, starts
from posttrain.inspection.tokens import Tokens, tokenised

_EXAMPLE_TOKENS = 2000  # a row of at most so many is shown, if there is one
_WHAT_IS_TRAINED = {
    "sft": "trained on",
    "preference": "trained on",
    "reward": "where the score is read",
    "prompts": "the model writes on from its end",
}


def details(
    request: Request, method: str, rows: Sequence[Row], columns: Sequence[str], ink: Ink
) -> tuple[bool, Iterator[Iterator[str]]]:
    """Tokenise the rows, and lay out what there is to say.

    Args:
        request: with the configs.
        method: whose rows these are.
        rows: that fit.
        columns: of the data.
        ink: colours.

    Returns:
        Whether training would begin with these rows, as far as that is known; the sections, one after the other.

    Raises:
        UserError: no tokenizer can be loaded.
    """
    if not request.has_model:
        hint = "--model_name_or_path MODEL tells more: a row as the model sees it, lengths, chat template, memory"
        sections = [iter(item(ink.dim("·"), hint, indent=0)), _start(request, method, rows, columns, None, {}, ink)]
        return True, iter(sections)
    config = request.configs[method]
    tokenizer: Any = read_tokenizer(config)
    options = options_of(config, config.data_kind, "train")
    whole = tokenised(tokenizer, rows, config.data_kind, dataclasses.replace(options, max_length=None, packing=None))
    model = describe_model(config, tokenizer)
    room = prompt_limit(whole, model, config) if whole.rows else None
    in_the_way = _end(tokenizer, config) + _rewards(request, method, columns)
    found = findings(tokenizer, whole, options) + in_the_way
    advised = {finding.flags[0].removeprefix("--"): [*finding.flags[1:]] for finding in found if finding.flags}
    if room is not None:
        advised |= {"max_prompt_tokens": [str(room)], "long_prompts": ["drop"]}
    sections = [_model(model, tokenizer, method, ink)]
    if whole.rows:
        cuts = cuts_of(config, tokenizer, whole, options)
        limit = better_limit(whole, cuts, model)
        if limit is not None and "max_length" not in config.explicit:
            advised["max_length"] = [str(limit)]
        sections += [_example(tokenizer, whole, options, ink), show_lengths(whole, cuts, model, config, ink)]
    sections += [_findings(found, whole, ink), _start(request, method, rows, columns, model, advised, ink)]
    is_sound = not whole.problems and room is None and all(finding.level != "bad" for finding in in_the_way)
    return is_sound, iter(sections)


def _model(model: Model, tokenizer: Any, method: str, ink: Ink) -> Iterator[str]:
    yield ink.bold("Model")
    facts = [model.name]
    if model.num_parameters is not None:
        facts.append(f"{_short_number(model.num_parameters)} parameters")
    if model.positions is not None:
        facts.append(f"{model.positions:,} positions")
    tokens = [(name, getattr(tokenizer, f"{name.lower()}_token")) for name in ("EOS", "PAD", "BOS")]
    facts += [f"{name} {token if token is not None else 'none'}" for name, token in tokens]
    yield from (f"  {line}" for line in wrapped(" · ".join(facts), WIDTH - 2))
    needed = model.training_bytes(method)
    if needed is not None and model.memory:
        sizes = [_short_size(size) for size in (needed, model.memory)]
        reference = ", and the reference" if method in ("dpo", "rloo") else ""
        fits = model.fits(method)
        short = (
            "too much for it" if model.fits_with_adapters(2) else "too much for it, and for adapters in bfloat16 too"
        )
        text = (
            f"all of it trained in float32: {sizes[0]} (weights, gradients, Adam's states{reference}), and activations "
            f"on top, of the {sizes[1]} of {model.where}" + ("" if fits else f"; {short}")
        )
        yield from item(ink.good("✓") if fits else ink.warn("!"), text)


def _short_number(number: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def _short_size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.3g} GiB" if num_bytes >= 2**29 else f"{num_bytes / 2**20:.3g} MiB"


def _example(tokenizer: Any, whole: Tokens, options: Options, ink: Ink) -> Iterator[str]:
    longest = whole.longest()
    short = np.flatnonzero(longest <= _EXAMPLE_TOKENS)
    index = int(short[0]) if len(short) else int(longest.argmin())
    row = whole.rows[index]
    limited = tokenised(tokenizer, [row], whole.kind, options)
    columns, index = (limited.columns, 0) if limited.rows else (whole.columns, index)
    mark = ink.trained("green", False) if ink.colored else f"{OPEN}…{CLOSE}"
    meaning = _WHAT_IS_TRAINED[whole.kind]
    title = f"{mark}: {meaning}" if whole.kind != "prompts" else meaning
    yield f"{ink.bold('Example')}  {ink.dim(row.place)}  {title}"
    for segment in segments_of(whole.kind, columns, index):
        yield from show_segment(tokenizer, segment, ink)


def _end(tokenizer: Any, config: CommonConfig) -> list[Finding]:
    """Whether training would refuse EOS and PAD; with a token that is there for padding, if there is one."""
    problem = end_problem(tokenizer, config)
    if problem is None:
        return []
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    pads = [token for token in special if "pad" in token.lower() and token != tokenizer.eos_token]
    return [Finding("bad", problem, ("--pad_token", pads[0]) if pads else ())]


def _rewards(request: Request, method: str, columns: Sequence[str]) -> list[Finding]:
    """Whether the rewards that the user names find their columns."""
    config = request.configs[method]
    if not isinstance(config, PolicyConfig) or not {"reward_funcs", "config"} & request.given[method].keys():
        return []
    from posttrain.rollout.rewards.check import check_rewards

    try:
        check_rewards(config, columns)
    except UserError as error:
        return [Finding("bad", str(error))]
    return [Finding("good", f"the columns have what {', '.join(config.reward_sources())} needs")]


def _findings(found: Sequence[Finding], whole: Tokens, ink: Ink) -> Iterator[str]:
    marks = {"good": ink.good("✓"), "warn": ink.warn("!"), "bad": ink.bad("✗")}
    dropped = whole.counts["rows_dropped_no_target"]
    problems = {headline: each for headline, each in whole.problems.found.items() if headline != "no chat template"}
    if not (found or dropped or problems):
        return
    yield ink.bold("Findings")
    for finding in sorted(found, key=lambda finding: ("bad", "warn", "good").index(finding.level)):
        yield from item(marks[finding.level], finding.text)
    if dropped:
        yield from item(marks["warn"], f"{dropped:,} rows have no token to train on and are left out")
    for headline, (count, places, detail) in problems.items():
        text = f"{count:,} rows cannot be tokenised: {headline} ({', '.join(places)}): {detail.splitlines()[0]}"
        yield from item(marks["bad"], text)


def _start(
    request: Request,
    method: str,
    rows: Sequence[Row],
    columns: Sequence[str],
    model: Model | None,
    advised: dict[str, list[str]],
    ink: Ink,
) -> Iterator[str]:
    given = {name: words for name, words in request.given[method].items() if name != "model_name_or_path"}
    has_test = _has_test_split(request.configs[method])
    facts = Facts(method, given, advised, model, columns, len(rows), has_test)
    yield ink.bold("Start with")
    for start in starts(facts):
        yield from (ink.dim(f"  # {line}") for line in wrapped(start.why, WIDTH - 4))
        yield from command(start.words)
    if method in ("grpo", "rloo") and "solution" not in columns and not {"reward_funcs", "config"} & given.keys():
        yield from item(
            ink.dim("·"), "the reward model is one that `posttrain reward` trains; functions: docs/rewards.md"
        )


def _has_test_split(config: CommonConfig) -> bool:
    try:
        return open_source(config, "test") is not None
    except UserError:
        return False
