"""What chat template, special tokens and rows have in store for training: fine, to be looked at, or in the way."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from posttrain.data.chat import has_markers, render
from posttrain.data.encode import Text, encode_texts
from posttrain.data.formats import Example, Message, parse_sft
from posttrain.data.problems import RowError
from posttrain.data.readers import Row
from posttrain.data.sft import tokenise_sft
from posttrain.data.tokenised import Options
from posttrain.inspection.tokens import Tokens

_ROWS_TRIED = 200
_IDS_AND_MASK = (("input_ids", "loss_mask"), ("chosen_ids", "chosen_mask"), ("rejected_ids", "rejected_mask"))


@dataclass(frozen=True)
class Finding:
    """Something to tell.

    Args:
        level: "good", "warn" or "bad": training fails, or teaches what is not meant.
        text: a sentence or two.
        flags: what to type about it.
    """

    level: Literal["good", "warn", "bad"]
    text: str
    flags: tuple[str, ...] = ()


def findings(tokenizer: Any, tokens: Tokens, options: Options) -> list[Finding]:
    """Look at the tokenizer's template and special tokens, and at what came of the rows.

    Args:
        tokenizer: of the model.
        tokens: the rows, without a limit.
        options: of the method.
    """
    found = [*_template(tokenizer, tokens)]
    if tokens.rows:
        if tokens.kind in ("sft", "preference"):
            found += _end(tokenizer, tokens)
        found += _beginning(tokenizer, tokens)
        found += _boundaries(tokenizer, tokens, options)
        if tokens.kind == "sft":
            found += _assistant(tokenizer, tokens, options)
    return found


def _template(tokenizer: Any, tokens: Tokens) -> Iterator[Finding]:
    without = tokens.problems.found.get("no chat template")
    if without is not None:
        yield Finding(
            "bad",
            f"no chat template: {without[0]:,} rows are conversations, and the tokenizer cannot render them; give one "
            "with --chat_template_path: a .jinja file, or a model whose template fits, such as a tuned one of the "
            "same family",
            ("--chat_template_path", "template.jinja"),
        )
    elif tokenizer.chat_template is None:
        yield Finding("good", "no chat template, and none is needed: the rows are plain text")


def _end(tokenizer: Any, tokens: Tokens) -> Iterator[Finding]:
    """Whether EOS is trained on: a model that never writes it never stops."""
    eos = tokenizer.eos_token
    trained = [bool(((ids == tokenizer.eos_token_id) & (mask != 0)).any()) for ids, mask in _sequences(tokens)]
    if all(trained):
        yield Finding("good", f"every sequence has the EOS token {eos!r} among what is trained on")
        return
    last = tokens.last_trained.most_common(1)[0][0]
    if any(trained):
        number = f"{len(trained) - sum(trained):,} of {len(trained):,} sequences"
        yield Finding("warn", f"{number} do not have the EOS token {eos!r} among what is trained on")
        return
    text = tokenizer.decode([last])
    never = (
        f"the EOS token {eos!r} is never trained on, so the model will not learn to stop; sequences end with {text!r}"
    )
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    end = next((token for token in _last_texts(tokenizer, tokens) if token in special), None)
    if end is not None:
        yield Finding("bad", f"{never}: give --eos_token {end!r}", ("--eos_token", end))
    else:
        yield Finding("bad", f"{never}: let the rows, or the chat template, end with it")


def _sequences(tokens: Tokens) -> Iterator[tuple[Any, Any]]:
    """Ids and mask of every sequence that has a mask."""
    for ids_name, mask_name in _IDS_AND_MASK:
        yield from zip(tokens.columns.get(ids_name, ()), tokens.columns.get(mask_name, ()), strict=True)


def _last_texts(tokenizer: Any, tokens: Tokens) -> Iterator[str]:
    """The last two tokens of the first sequence, the last one first: a line end may follow on the end of a turn."""
    ids, _ = next(_sequences(tokens))
    return (tokenizer.decode([int(token)]) for token in reversed(ids[-2:]))


def _beginning(tokenizer: Any, tokens: Tokens) -> Iterator[Finding]:
    bos = tokenizer.bos_token_id
    if bos is None:
        return
    starts = [tuple(ids[:2]) for ids in tokens.columns["input_ids" if tokens.kind == "sft" else "prompt_ids"]]
    doubled = sum(start == (bos, bos) for start in starts)
    if doubled:
        yield Finding(
            "bad",
            f"{doubled:,} rows begin with {tokenizer.bos_token!r} twice; take it out of the rows or out of the chat "
            "template",
        )
    [plain] = encode_texts(tokenizer, [Text("a", is_rendered=False)])
    without = sum(start[:1] != (bos,) for start in starts)
    if plain.ids[0] == bos and without:
        yield Finding(
            "warn",
            f"{without:,} rows do not begin with {tokenizer.bos_token!r}, with which this tokenizer begins every text; "
            "a chat template writes it itself ({{ bos_token }})",
        )


def _boundaries(tokenizer: Any, tokens: Tokens, options: Options) -> Iterator[Finding]:
    """Whether what the model is asked with is how the text that it learns from goes."""
    counted = tokens.counts["rows_prompt_not_prefix"]
    if counted:
        yield Finding(
            "warn",
            f"{counted:,} rows: the last tokens of the prompt alone are not those before its completion (they merge, "
            "or the chat template changes them); they count as the completion's",
        )
    if tokens.kind != "sft":
        return
    tried, parted = 0, 0
    for row in tokens.rows[:_ROWS_TRIED]:
        example = parse_sft(row.columns, options.text_field)
        messages = example.completions[0] if isinstance(example, Example) and example.prompt is None else ""
        if isinstance(example, Example) and isinstance(messages, list) and messages[-1]["role"] == "assistant":
            tried += 1
            parted += not _is_prefix(tokenizer, messages, example)
    if parted:
        yield Finding(
            "warn",
            f"the chat template is not prefix-stable: in {parted:,} of {tried:,} rows the conversation up to the last "
            "answer, with the generation prompt, is not how the whole begins, so the model is asked in other words "
            "than those it learns from",
        )


def _is_prefix(tokenizer: Any, messages: list[Message], example: Example) -> bool:
    try:
        whole = render(tokenizer, messages, example.tools, example.template_kwargs)
        return whole.startswith(render(tokenizer, messages[:-1], example.tools, example.template_kwargs, True))
    except RowError:  # a template may refuse a part of a conversation
        return True


def _assistant(tokenizer: Any, tokens: Tokens, options: Options) -> Iterator[Finding]:
    """Whether the assistant's part can be told from the rest, and how much of the tokens it is."""
    rows = [row for row in tokens.rows[:_ROWS_TRIED] if _is_conversation(row, options)]
    if not rows or options.assistant_only:
        return
    if not tokenizer.is_fast:
        yield Finding("warn", "assistant_only_loss needs a fast tokenizer, which this model does not have")
        return
    result = tokenise_sft(tokenizer, rows, dataclasses.replace(options, assistant_only=True), 0)
    if result.problems:
        headline, (count, _, _) = next(iter(result.problems.found.items()))
        yield Finding("warn", f"assistant_only_loss is not possible in {count:,} of {len(rows):,} rows: {headline}")
        return
    if len(result.columns.get("input_ids", ())) < len(rows):
        number = len(rows) - len(result.columns.get("input_ids", ()))
        yield Finding(
            "warn", f"with --assistant_only_loss {number:,} of {len(rows):,} rows would have nothing to train on"
        )
        return
    share = sum(int(mask.sum()) for mask in result.columns["loss_mask"]) / sum(map(len, result.columns["input_ids"]))
    how = (
        "{% generation %} marks" if has_markers(tokenizer.get_chat_template()) else "the template's own behaviour shows"
    )
    yield Finding("good", f"--assistant_only_loss is possible: {how} the assistant's part, {share:.0%} of the tokens")


def _is_conversation(row: Row, options: Options) -> bool:
    example = parse_sft(row.columns, options.text_field)
    return isinstance(example, Example) and example.is_conversation
