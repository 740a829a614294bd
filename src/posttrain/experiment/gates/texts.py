"""Rows of data as what they ask and what they answer, whatever their format; rows that no training would take, too.

The readers of training refuse a row with an empty answer, or a pair whose sides are the same. Here such rows are read,
so that they can be counted and named.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from tqdm import tqdm

from posttrain.data.formats import Content, content_of, present, split_common_prompt
from posttrain.data.problems import RowError
from posttrain.data.sources import Source
from posttrain.errors import UserError

_SECONDS_BEFORE_BAR = 3.0


class TextRow(NamedTuple):
    """A row as text.

    Args:
        place: where it stands, for messages.
        prompt: what is asked, without system messages; of a row of plain text, all of it.
        answers: the chosen and the rejected one of a pair; the last one of a conversation; none where there is none.
        is_pair: whether the row is a preference.
    """

    place: str
    prompt: str
    answers: tuple[str, ...]
    is_pair: bool = False

    @property
    def whole(self) -> str:
        """All that training on the row reads."""
        return "\n".join((self.prompt, *self.answers))


def read_texts(source: Source, name: str) -> list[TextRow]:
    """Read all rows of a source.

    Args:
        source: a file, a folder's split or a data set of the hub.
        name: what the progress bar shows.

    Raises:
        UserError: a file cannot be read, or a row has none of the formats of training.
    """
    rows = []
    for row in tqdm(source.rows(), desc=f"reading {name}", unit="row", delay=_SECONDS_BEFORE_BAR):
        try:
            rows.append(_text_row(row.place, present(row.columns)))
        except RowError as error:
            raise UserError(f"{row.place}: {error}", "troubleshooting.md#data") from error
    return rows


def _text_row(place: str, columns: Mapping[str, Any]) -> TextRow:
    if "chosen" in columns and "rejected" in columns:
        prompt, chosen, rejected = _pair(columns)
        return TextRow(place, _text(prompt), (_text(chosen), _text(rejected)), is_pair=True)
    for name in ("messages", "conversations"):
        if name in columns:
            messages = content_of(columns[name], name)
            return TextRow(place, *_divided(messages))
    if "prompt" in columns:
        answers = (content_of(columns["completion"], "completion"),) if "completion" in columns else ()
        return TextRow(place, _text(content_of(columns["prompt"], "prompt")), tuple(map(_text, answers)))
    if isinstance(columns.get("text"), str):
        return TextRow(place, columns["text"], ())
    if isinstance(columns.get("input_ids"), list):  # tokens compare as words do
        return TextRow(place, " ".join(map(str, columns["input_ids"])), ())
    raise RowError(
        "nothing to compare",
        f"found {', '.join(columns) or 'no column'}; wanted messages, text, prompt, or chosen and rejected",
    )


def _pair(columns: Mapping[str, Any]) -> tuple[Content, Content, Content]:
    """Prompt, chosen and rejected; the prompt is what both begin with where no column holds it."""
    chosen, rejected = (content_of(columns[name], name) for name in ("chosen", "rejected"))
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise RowError("chosen and rejected are of different kinds", "make both text or both lists of messages")
    prompt = content_of(columns["prompt"], "prompt") if "prompt" in columns else None
    whole_dialogues = isinstance(chosen, list) and chosen[0]["role"] != "assistant"
    if prompt is not None and not (isinstance(prompt, str) and whole_dialogues):
        return prompt, chosen, rejected
    if chosen == rejected:
        return "", chosen, rejected
    return split_common_prompt(chosen, rejected)


def _divided(messages: Content) -> tuple[str, tuple[str, ...]]:
    """Everything before the assistant's last message, and that."""
    if isinstance(messages, str) or messages[-1]["role"] != "assistant":
        return _text(messages), ()
    return _text(messages[:-1]), (_text(messages[-1:]),)


def _text(content: Content) -> str:
    """What is said, without system messages: all rows of a data set may share them."""
    if isinstance(content, str):
        return content
    return "\n".join(_said(message) for message in content if message["role"] != "system")


def _said(message: Mapping[str, Any]) -> str:
    """The text of a message; of one that says nothing and does something (a tool call), what it does."""
    others = [str(value) for key, value in message.items() if key not in ("role", "content") and value]
    return message.get("content") or " ".join(others)
