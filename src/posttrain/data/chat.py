"""Conversations to text through the tokenizer's chat template, and where in that text the assistant speaks.

Where a template marks the assistant's part with {% generation %}, the marks count. Where it does not, the boundaries of
messages are found from the template's own behaviour, so every template will do:

1. By prefixes. The conversation up to an assistant's message, with the generation prompt, is a prefix of the whole; so
   is the conversation through that message. What lies between is the assistant's.
2. By probes, for a beginning or an end where that does not hold (a template that drops the reasoning of earlier turns,
   or that closes every text with an end token). The message is replaced by two probe words in turn. What both
   renderings share before and after the probe is what surrounds the message in the whole text.

In both cases the end-of-turn token belongs to the assistant, white space after it does not: a model that has ended its
turn does not write it.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from posttrain.data.clock import stop_clock
from posttrain.data.formats import Message
from posttrain.data.prefix import common_prefix_length, common_suffix_length
from posttrain.data.problems import RowError
from posttrain.data.template import apply_template, template_of, within_limits

Span = tuple[int, int]  # from, to: characters of a rendered conversation
Render = Callable[[list[Message], bool], str]  # messages, with the generation prompt?

_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PROBES = ("Qwertz", "Bvlyxh")  # no letter in common at the beginning, nor at the end


def render(
    tokenizer: Any,
    messages: list[Message],
    tools: list[Any] | None,
    template_kwargs: Mapping[str, Any],
    add_generation_prompt: bool = False,
) -> str:
    """A conversation as text; nothing where there are no messages.

    Raises:
        RowError: the template refuses it, or goes beyond a limit.
        UserError: the template itself is broken.
    """
    if not messages:
        return ""
    return apply_template(tokenizer, messages, tools, add_generation_prompt=add_generation_prompt, **template_kwargs)


def render_with_spans(
    tokenizer: Any, messages: list[Message], tools: list[Any] | None, template_kwargs: Mapping[str, Any]
) -> tuple[str, list[Span]]:
    """A conversation as text, and the stretches of it that the assistant writes, end-of-turn token included.

    Raises:
        RowError: the template refuses the conversation, or hides where a message begins and ends.
    """
    if has_markers(template_of(tokenizer, tools)):
        return _render_marked(tokenizer, messages, tools, template_kwargs)

    def own_render(messages: list[Message], add_generation_prompt: bool) -> str:
        return render(tokenizer, messages, tools, template_kwargs, add_generation_prompt)

    special_tokens = tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return assistant_spans(own_render, messages, special_tokens)


def has_markers(template: str) -> bool:
    """Whether a chat template marks the assistant's part with {% generation %}."""
    return _MARKER.search(template) is not None


def _render_marked(
    tokenizer: Any, messages: list[Message], tools: list[Any] | None, template_kwargs: Mapping[str, Any]
) -> tuple[str, list[Span]]:
    from transformers.utils.chat_template_utils import render_jinja_template

    spans: list[Span] = []
    template = template_of(tokenizer, tools)

    def own_render() -> str:
        stop_clock(template)
        rendered, found = render_jinja_template(
            [messages],
            tools=tools,
            chat_template=template,
            return_assistant_tokens_mask=True,
            **{**tokenizer.special_tokens_map, **template_kwargs},
        )
        spans.extend(tuple(span) for span in found[0])
        return str(rendered[0])

    return within_limits(own_render, (messages, tools, template_kwargs), template), spans


def assistant_spans(render: Render, messages: list[Message], special_tokens: tuple[str, ...]) -> tuple[str, list[Span]]:
    """The same from the boundaries of messages, for a template without markers.

    Args:
        render: the template.
        messages: the whole conversation.
        special_tokens: texts of the tokenizer's special tokens, among them those that end a turn.

    Raises:
        RowError: the template hides where a message begins or ends.
    """
    whole = render(messages, False)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        start = _start_by_prefix(render, messages, index, whole)
        stop = _stop_by_prefix(render, messages, index, whole)
        if start is None or stop is None:
            probed = _span_by_probes(render, messages, index, whole, special_tokens)
            if probed is None:
                raise RowError(
                    "the chat template hides where the assistant's part is",
                    f"message {index} cannot be found in the rendered text, so assistant_only_loss has nothing to go "
                    "by; put {% generation %} and {% endgeneration %} around the assistant's part of the template "
                    "(--chat_template_path), or train on prompt and completion",
                )
            start = probed[0] if start is None else start
            stop = probed[1] if stop is None else stop
        start = _not_within_token(whole, start, special_tokens)
        spans.append(_without_space_after_end(whole, (start, stop), special_tokens))
    return whole, spans


def _try(render: Render, messages: list[Message], add_generation_prompt: bool) -> str | None:
    """Templates may refuse a part of a conversation: None then; and None where there is nothing to render."""
    try:
        return render(messages, add_generation_prompt) or None
    except RowError as error:
        if error.is_last:
            raise
        return None


def _start_by_prefix(render: Render, messages: list[Message], index: int, whole: str) -> int | None:
    opened = _try(render, messages[:index], True)
    if opened is None:
        return None
    start = common_prefix_length(opened, whole)
    if start == len(opened):
        return start
    # The generation prompt may say more than the whole text has there, such as an opening <think>.
    before = _try(render, messages[:index], False)
    return start if before is not None and whole.startswith(before) and start > len(before) else None


def _stop_by_prefix(render: Render, messages: list[Message], index: int, whole: str) -> int | None:
    through = whole if index == len(messages) - 1 else _try(render, messages[: index + 1], False)
    return len(through) if through is not None and whole.startswith(through) else None


def _span_by_probes(
    render: Render, messages: list[Message], index: int, whole: str, special_tokens: tuple[str, ...]
) -> Span | None:
    probes = [{"role": "assistant", "content": word} for word in _PROBES]
    first, second = (_try(render, [*messages[:index], probe, *messages[index + 1 :]], False) for probe in probes)
    if first is None or second is None:
        return None
    head = first[: common_prefix_length(first, second)]
    tail = first[len(first) - common_suffix_length(first, second) :]
    if (head + _PROBES[0] + tail, head + _PROBES[1] + tail) != (first, second) or not whole.endswith(tail):
        return None
    start, stop = common_prefix_length(head, whole), len(whole) - len(tail)
    if start > stop:
        return None
    closed = _try(render, [*messages[:index], probes[0]], False)
    if closed is not None and _PROBES[0] in closed:
        stop += _shared_ending(closed.rpartition(_PROBES[0])[2], whole[stop:], special_tokens)
    return start, stop


def _shared_ending(ending: str, following: str, special_tokens: tuple[str, ...]) -> int:
    """How much of `following` ends the turn: what it shares with `ending`, through the last special token in that."""
    shared = ending[: common_prefix_length(ending, following)]
    last = max((shared.rfind(token) + len(token) for token in special_tokens if token in shared), default=0)
    return len(shared) if shared == ending and not last else last


def _not_within_token(text: str, start: int, special_tokens: tuple[str, ...]) -> int:
    """Texts may part in the middle of two special tokens that begin alike: back to where the token begins."""
    for token in special_tokens:
        begin = text.find(token, max(0, start - len(token) + 1), start + len(token) - 1)
        if 0 <= begin < start:
            return begin
    return start


def _without_space_after_end(text: str, span: Span, special_tokens: tuple[str, ...]) -> Span:
    start, stop = span
    trimmed = text[start:stop].rstrip()
    return (start, start + len(trimmed)) if trimmed.endswith(special_tokens) else span
