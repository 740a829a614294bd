"""From examples to texts, and from texts to tokens, many at once.

Text gets the EOS token at its end; a conversation has what its template writes, and no BOS but the template's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from posttrain.data.chat import Span, render, render_with_spans
from posttrain.data.formats import Example
from posttrain.data.problems import RowError
from posttrain.data.template import check_says_messages

Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.int8]


@dataclass(slots=True)
class Text:
    """Something to tokenise.

    Args:
        text: as it is.
        is_rendered: by a chat template, which writes its own special tokens.
        spans: stretches of the text that the assistant writes, where they are asked for.
    """

    text: str
    is_rendered: bool
    spans: list[Span] | None = None


@dataclass(slots=True)
class Encoding:
    """A text in tokens.

    Args:
        ids: its tokens.
        offsets: first character of each and the one after its last; where spans were given.
    """

    ids: list[int]
    offsets: list[tuple[int, int]] | None


def texts_of(tokenizer: Any, example: Example, with_spans: bool = False) -> list[Text]:
    """What has to be tokenised for a row: its prompt if it has one, and prompt + completion for each completion.

    Args:
        tokenizer: with its chat template.
        example: the row.
        with_spans: find out where the assistant speaks in prompt + completion.

    Raises:
        RowError: the template fails, there is none, or the text cannot be encoded.
    """
    is_chat = example.is_conversation
    if is_chat and tokenizer.chat_template is None:
        raise RowError(
            "no chat template",
            "the row is a conversation and the tokenizer has no chat template; give --chat_template_path (a .jinja "
            "file, or a folder or hub id of a tokenizer that has one)",
        )
    if is_chat:
        check_says_messages(tokenizer)
    texts = []
    if example.prompt is not None:
        texts.append(
            Text(render(tokenizer, example.prompt, example.tools, example.template_kwargs, True), True)
            if isinstance(example.prompt, list)
            else Text(example.prompt, False)
        )
    for completion in example.completions:
        if isinstance(completion, str):
            ending = "" if completion.endswith(tokenizer.eos_token) else tokenizer.eos_token
            texts.append(Text(f"{example.prompt or ''}{completion}{ending}", False))
            continue
        messages = [*(example.prompt or []), *completion]
        if with_spans:
            text, spans = render_with_spans(tokenizer, messages, example.tools, example.template_kwargs)
            texts.append(Text(text, True, spans))
        else:
            texts.append(Text(render(tokenizer, messages, example.tools, example.template_kwargs), True))
    for one in texts:
        check_encodable(one.text)
    return texts


def check_encodable(text: str) -> None:
    """Raises RowError where a text holds half a character, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(
            "half a character",
            f"character {error.start} is {error.object[error.start]!r}, one half of a surrogate pair",
        ) from error


def encode_texts(tokenizer: Any, texts: Sequence[Text]) -> list[Encoding]:
    """Tokenise many texts at once."""
    encodings: list[Encoding | None] = [None] * len(texts)
    groups: dict[tuple[bool, bool], list[int]] = {}
    for index, text in enumerate(texts):
        groups.setdefault((text.is_rendered, text.spans is not None), []).append(index)
    for (is_rendered, with_offsets), indices in groups.items():
        encoded = tokenizer(
            [texts[index].text for index in indices],
            add_special_tokens=not is_rendered,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=with_offsets,
            verbose=False,
        )
        offsets = encoded["offset_mapping"] if with_offsets else [None] * len(indices)
        for index, ids, places in zip(indices, encoded["input_ids"], offsets, strict=True):
            encodings[index] = Encoding(ids if is_rendered else _without_doubles(tokenizer, ids), places)
    return [encoding for encoding in encodings if encoding is not None]


def _without_doubles(tokenizer: Any, ids: list[int]) -> list[int]:
    """Some tokenizers put BOS in front, or EOS behind, of a text that has it already."""
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        ids = ids[1:]
    if len(ids) > 1 and ids[-1] == ids[-2] == tokenizer.eos_token_id:
        ids = ids[:-1]
    return ids
