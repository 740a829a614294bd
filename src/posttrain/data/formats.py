"""From a row's columns to an example: which format it has, whether it is sound, and its prompt and completions.

Departures from TRL: the format is recognised row by row, so a mixture may hold several; a row that has `messages` and
`prompt` without `completion` trains on its messages; ShareGPT's `human` and `gpt` become `user` and `assistant`; a
completion mask that comes with tokenised rows is heeded unless `completion_only_loss` is false.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from posttrain.data.format_errors import MESSAGES_EXAMPLE, wrong_columns, wrong_type
from posttrain.data.prefix import common_prefix_length
from posttrain.data.problems import RowError
from posttrain.data.template import check_options
from posttrain.strict_json import BrokenJSON, parse_json

Message = dict[str, Any]
Content = str | list[Message]  # plain text, or a conversation

_MAX_MARGIN = 1e30  # it is kept as float32
_ROLES = {"human": "user", "gpt": "assistant"}


@dataclass(slots=True)
class Example:
    """One row, understood.

    Args:
        prompt: None where the format has none (text, messages).
        completions: what continues the prompt: one for SFT; chosen and rejected for preferences.
        tools: JSON schemas for the chat template.
        template_kwargs: further variables for the chat template.
        margin: how much better the chosen one is, if the row says so.
        is_prompt_given: False = the prompt is only what the completions have in common.
    """

    prompt: Content | None
    completions: tuple[Content, ...]
    tools: list[Any] | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    margin: float | None = None
    is_prompt_given: bool = True

    @property
    def is_conversation(self) -> bool:
        return isinstance(self.completions[0], list)


@dataclass(slots=True)
class TokenExample:
    """A row that comes as tokens.

    Args:
        input_ids: its tokens.
        completion_mask: 1 = part of the completion; None where the row has none.
        trained_mask: 1 = trained on, from `labels` or `assistant_masks`; None = all are.
    """

    input_ids: list[int]
    completion_mask: list[int] | None = None
    trained_mask: list[int] | None = None


def parse_sft(columns: Mapping[str, Any], text_field: str) -> Example | TokenExample:
    """Understand a row for supervised fine-tuning.

    Args:
        columns: the row; a column of None counts as absent.
        text_field: the column with plain text.

    Raises:
        RowError: it has none of the formats, a wrong type or an empty completion.
    """
    columns = present(columns)
    if "input_ids" in columns:
        return _parse_tokens(columns)
    if "prompt" in columns and "completion" in columns:
        prompt = content_of(columns["prompt"], "prompt")
        completion = content_of(columns["completion"], "completion")
        _check_same_kind(("prompt", prompt), ("completion", completion))
        _check_not_empty(completion, "completion")
        return _with_template_options(Example(prompt, (completion,)), columns)
    if text_field in columns and text_field != "text":
        return Example(None, (_text(columns[text_field], text_field),))
    for name in ("messages", "conversations"):
        if name in columns:
            messages = _messages(columns[name], name)
            if messages[-1]["role"] == "assistant":
                _check_not_empty(messages[-1:], name)
            return _with_template_options(Example(None, (messages,)), columns)
    if text_field in columns:
        return Example(None, (_text(columns[text_field], text_field),))
    hint = ""
    if "chosen" in columns and "rejected" in columns:
        hint = "These are preference pairs: `posttrain dpo` trains on them."
    elif "prompt" in columns or "completion" in columns:
        hint = f"The column {'completion' if 'prompt' in columns else 'prompt'!r} is missing."
    raise wrong_columns("sft", columns, hint)


def parse_preference(columns: Mapping[str, Any]) -> Example:
    """Understand a preference pair, with its prompt in a column or as the common beginning of the two.

    Args:
        columns: the row; a column of None counts as absent.

    Raises:
        RowError: a column is missing, has a wrong type or is empty; chosen and rejected are the same.
    """
    columns = present(columns)
    if "chosen" not in columns or "rejected" not in columns:
        hint = "`posttrain sft` trains on rows like these." if {"messages", "completion"} & columns.keys() else ""
        raise wrong_columns("preference", columns, hint)
    chosen, rejected = (content_of(columns[name], name) for name in ("chosen", "rejected"))
    _check_same_kind(("chosen", chosen), ("rejected", rejected))
    _check_not_empty(chosen, "chosen")
    _check_not_empty(rejected, "rejected")
    if chosen == rejected:
        raise RowError("chosen = rejected", "a pair without a difference teaches nothing; take it out")
    prompt = content_of(columns["prompt"], "prompt") if "prompt" in columns else None
    whole_dialogues = isinstance(chosen, list) and chosen[0]["role"] != "assistant"
    is_given = prompt is not None and not (isinstance(prompt, str) and whole_dialogues)
    if prompt is None or not is_given:
        prompt, chosen, rejected = split_common_prompt(chosen, rejected)
    _check_same_kind(("prompt", prompt), ("chosen", chosen))
    margin = columns.get("margin")
    if margin is not None and (isinstance(margin, bool) or not isinstance(margin, int | float)):
        raise wrong_type("margin", "a number", margin)
    if margin is not None and not abs(margin) < _MAX_MARGIN:
        raise wrong_type("margin", "a number that is not NaN nor beyond all measure", float("nan"))
    example = Example(prompt, (chosen, rejected), is_prompt_given=is_given)
    example.margin = None if margin is None else float(margin)
    return _with_template_options(example, columns)


def split_common_prompt(chosen: Content, rejected: Content) -> tuple[Content, Content, Content]:
    """Divide two whole texts (or conversations) that differ into their common beginning and the rest of each.

    A space before the difference stays with the rests, where tokenizers expect it; neither rest is empty.
    """
    length, shorter = common_prefix_length(chosen, rejected), min(len(chosen), len(rejected))
    if length == shorter or (length and chosen[length - 1] == " "):
        length -= 1
    return chosen[:length], chosen[length:], rejected[length:]


def present(columns: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that hold a value."""
    return {name: value for name, value in columns.items() if value is not None}


def _parse_tokens(columns: Mapping[str, Any]) -> TokenExample:
    ids = _integers(columns["input_ids"], "input_ids")
    if not ids:
        raise RowError("empty input_ids", "take the row out")
    if min(ids) < 0:
        raise wrong_type("input_ids", "token ids from 0", min(ids))
    masks = {}
    for name in ("labels", "completion_mask", "assistant_masks"):
        if name in columns:
            masks[name] = _integers(columns[name], name)
            if len(masks[name]) != len(ids):
                raise RowError(
                    f"wrong length of {name!r}",
                    f"{len(masks[name])} numbers for {len(ids)} input_ids; give one for each",
                )
    trained = None
    if "labels" in masks:  # complete: the other masks are taken to be part of it
        trained = [int(label != -100) for label in masks["labels"]]
        for position, (label, token) in enumerate(zip(masks["labels"], ids, strict=True)):
            if label not in (-100, token):
                raise RowError(
                    "labels differ from input_ids",
                    f"token {position} is {token}, its label {label}; a label is its own token, or -100 (not trained)",
                )
        return TokenExample(ids, None, trained)
    for name, mask in masks.items():
        wrong = next((value for value in mask if value not in (0, 1)), None)
        if wrong is not None:
            raise wrong_type(name, "0 or 1 for each token", wrong)
    return TokenExample(ids, masks.get("completion_mask"), masks.get("assistant_masks"))


def _integers(value: Any, column: str) -> list[int]:
    if not isinstance(value, list) or any(type(item) is not int for item in value):
        raise wrong_type(column, "a list of whole numbers", value)
    return value


def _text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise wrong_type(column, "text", value)
    return value


def content_of(value: Any, column: str) -> Content:
    """Text or messages, as they stand in a column.

    Raises:
        RowError: it is neither.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return _messages(value, column)
    raise wrong_type(column, "text or a list of messages", value)


def _messages(value: Any, column: str) -> list[Message]:
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise wrong_type(column, f"a list of messages such as {MESSAGES_EXAMPLE}", value)
    if not value:
        raise RowError(f"empty list of messages in {column!r}", "take the row out, or give it a message")
    return [_message(message, f"{column}[{number}]") for number, message in enumerate(value)]


def _message(message: Message, where: str) -> Message:
    # A table gives every message every key, and templates ask whether a key is there: None means absent.
    message = {key: value for key, value in message.items() if value is not None}
    if "from" in message and "role" not in message:
        sender = message.pop("from")
        message["role"] = _ROLES.get(sender, sender) if isinstance(sender, str) else sender
    if "value" in message and "content" not in message:
        message["content"] = message.pop("value")
    if not isinstance(message.get("role"), str):
        raise wrong_type(f"{where}.role", "text such as user or assistant", message.get("role"))
    content = message.get("content")
    if isinstance(content, list):
        message["content"] = "".join(_text_part(part, where) for part in content)
    elif not isinstance(content, str) and (content is not None or len(message) == 1):
        raise wrong_type(f"{where}.content", "text", content)
    return message


def _text_part(part: Any, where: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else part
    raise wrong_type(f"{where}.content", 'text or parts {"type": "text"} (images and sound are not trained on)', kind)


def _with_template_options(example: Example, columns: Mapping[str, Any]) -> Example:
    if example.is_conversation:
        example.tools, example.template_kwargs = template_options(columns)
    return example


def template_options(columns: Mapping[str, Any]) -> tuple[list[Any] | None, dict[str, Any]]:
    """What a row gives the chat template beside the messages: the tools, and further variables.

    Raises:
        RowError: they are of a wrong type, or would change how the template is used.
    """
    tools = json_column(columns, "tools", list) or None  # some templates take [] for tools
    options = json_column(columns, "chat_template_kwargs", dict) or {}
    check_options(options)
    return tools, {key: value for key, value in options.items() if value is not None}


def json_column(columns: Mapping[str, Any], name: str, kind: type) -> Any:
    """A column that holds a list or a mapping, or JSON text of one.

    Raises:
        RowError: it holds something else.
    """
    value = columns.get(name)
    if isinstance(value, str) and value.strip():
        try:
            value = parse_json(value)
        except BrokenJSON as error:
            where = "" if error.position is None else f"character {error.position}: "
            raise RowError(f"broken JSON in {name!r}", f"{where}{error}") from error
    if value and not isinstance(value, kind):
        raise wrong_type(name, f"a {kind.__name__}, or JSON text of one", value)
    return value


def _check_same_kind(first: tuple[str, Content], second: tuple[str, Content]) -> None:
    kinds = ["text" if isinstance(content, str) else "a list of messages" for _, content in (first, second)]
    if kinds[0] != kinds[1]:
        raise RowError(
            f"{first[0]!r} and {second[0]!r} are of different kinds",
            f"one is {kinds[0]}, the other {kinds[1]}; make both text or both lists of messages",
        )


def _check_not_empty(content: Content, column: str) -> None:
    if isinstance(content, str):
        empty = not content.strip()
    else:
        last = content[-1]
        has_more = any(last.get(key) for key in last if key not in ("role", "content"))
        empty = not (last.get("content") or "").strip() and not has_more
    if empty:
        raise RowError(f"empty completion in {column!r}", "it would teach the model to say nothing; take the row out")
