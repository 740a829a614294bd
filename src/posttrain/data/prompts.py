"""Prompts to sample completions from, and the columns beside them that reach the rewards."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from posttrain.data.chat import render
from posttrain.data.encode import Text, check_encodable, encode_texts
from posttrain.data.format_errors import wrong_columns
from posttrain.data.formats import Content, content_of, present, template_options
from posttrain.data.problems import RowError
from posttrain.data.readers import Row
from posttrain.data.template import check_options, check_says_messages
from posttrain.data.tokenised import Options, Tokenised


@dataclass(slots=True)
class Prompt:
    """A row, understood.

    Args:
        content: text, or a conversation that the completion goes on with.
        tools: JSON schemas for the chat template.
        template_kwargs: further variables for the chat template.
    """

    content: Content
    tools: list[Any] | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)


def parse_prompt(columns: Mapping[str, Any]) -> Prompt:
    """Understand a row of prompts.

    Args:
        columns: the row; a column of None counts as absent.

    Raises:
        RowError: there is no prompt, it has a wrong type or is empty.
    """
    columns = present(columns)
    if "prompt" not in columns:
        hint = ""
        if "messages" in columns:
            hint = "The rows are whole conversations: `posttrain sft` trains on them."
        raise wrong_columns("prompts", columns, hint)
    content = content_of(columns["prompt"], "prompt")
    if not content:
        raise RowError("empty prompt", "there is nothing to go on from; take the row out")
    if isinstance(content, str):
        return Prompt(content)
    return Prompt(content, *template_options(columns))


def tokenise_prompts(tokenizer: Any, rows: Sequence[Row], options: Options, first_row: int) -> Tokenised:
    """Tokenise a batch of rows into the columns prompt_ids (int32), row (int64, index in the data set), place (where
    the row stands), prompt (JSON of the text or the messages) and columns (JSON of all others, for the rewards).

    Args:
        tokenizer: of the policy.
        rows: at most a few thousand.
        options: max_length is that of a prompt, long_prompts says what happens to longer ones.
        first_row: index of the first one in the data set.

    Returns:
        The tokens; or, for rows that cannot be used, the reasons.
    """
    result = Tokenised()
    texts: list[Text] = []
    kept: list[tuple[str, str]] = []
    for row in rows:
        try:
            prompt = parse_prompt(row.columns)
            text = _text_of(tokenizer, prompt, options)
            others = {name: value for name, value in row.columns.items() if name != "prompt"}
            kept.append((_as_json(prompt.content), _as_json(others)))
            texts.append(text)
        except RowError as error:
            result.problems.add(row.place, error)
    if result.problems:
        return result
    for index, (row, encoding) in enumerate(zip(rows, encode_texts(tokenizer, texts), strict=True)):
        ids = encoding.ids
        if not ids:
            result.problems.add(row.place, RowError("empty prompt", "it has no tokens; take the row out"))
            continue
        if options.max_length is not None and len(ids) > options.max_length:
            if options.long_prompts == "error":
                result.problems.add(row.place, _too_long(len(ids), options.max_length))
                continue
            if options.long_prompts == "drop":
                result.drop("rows_dropped_long_prompt", row.place)
                continue
            result.count_truncated(len(ids) - options.max_length)
            ids = ids[-options.max_length :]
        result.append(
            prompt_ids=np.asarray(ids, dtype=np.int32),
            row=first_row + index,
            place=row.place.encode("utf-8", "replace").decode(),  # names of files may be any bytes
            prompt=kept[index][0],
            columns=kept[index][1],
        )
    return result


def _as_json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    check_encodable(text)
    return text


def _text_of(tokenizer: Any, prompt: Prompt, options: Options) -> Text:
    if isinstance(prompt.content, str):
        text = Text(prompt.content, is_rendered=False)
    elif tokenizer.chat_template is None:
        raise RowError(
            "no chat template",
            "the prompt is a conversation and the tokenizer has no chat template; give --chat_template_path (a .jinja "
            "file, or a folder or hub id of a tokenizer that has one)",
        )
    else:
        check_says_messages(tokenizer)
        goes_on = prompt.content[-1]["role"] == "assistant"  # the completion continues what was begun
        given = {**json.loads(options.template_kwargs), **prompt.template_kwargs}
        check_options(given)
        if goes_on:
            given["continue_final_message"] = True
        text = Text(render(tokenizer, prompt.content, prompt.tools, given, not goes_on), is_rendered=True)
    check_encodable(text.text)
    return text


def _too_long(length: int, limit: int) -> RowError:
    return RowError(
        "prompt too long",
        f"it has {length:,} tokens and max_prompt_tokens is {limit:,}; leave such rows out with --long_prompts drop, "
        "cut them at the front with --long_prompts truncate_left, or raise --max_prompt_tokens",
    )
