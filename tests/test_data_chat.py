"""Where the assistant speaks, with templates of every temper."""

from typing import Any

import pytest
from helpers_data import MARKED_TEMPLATE, PLAIN_TEMPLATE, bot, make_tokenizer, user

from posttrain.data.chat import has_markers, render, render_with_spans
from posttrain.data.problems import RowError
from posttrain.errors import UserError

TALK = [user("a?"), bot("one"), user("b?"), bot("two")]

# Closes every text with an end token unless it asks for more: no earlier rendering is a prefix of a later one.
CLOSING = (
    "{% for m in messages %}{{ '<|user|>' if m.role == 'user' else '<|bot|>' }}{{ m.content }}<|end|>\n{% endfor %}"
    "{{ '<|bot|>' if add_generation_prompt else '<eos>' }}"
)
# Writes a reasoning block into the last answer alone, and takes it out of the earlier ones.
REASONING = (
    "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}<|end|>\n{% else %}<|bot|>\n"
    "{% set answer = m.content.split('</think>')[-1] %}{% if loop.last %}<think>"
    "{{ m.content.split('</think>')[0].split('<think>')[-1] if '</think>' in m.content }}</think>{% endif %}"
    "{{ answer }}<|end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|bot|>\n{% endif %}"
)
# Opens a reasoning block in the generation prompt that the conversation does not have.
OPENING = PLAIN_TEMPLATE.replace("<|bot|>{% endif %}", "<|bot|><think>{% endif %}")
# Ends the last answer with another token than the earlier ones, and opens answers with one.
CHANNELS = (
    "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}<|end|>{% else %}"
    "<|bot|><bos>{{ m.content }}"
    "{{ '<eos>' if loop.last else '<|end|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|bot|>{% endif %}"
)
# No special token at all, and none that ends a turn.
WORDS = (
    "{% for m in messages %}{{ 'Q: ' if m.role == 'user' else 'A: ' }}{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}A: {% endif %}"
)
# Refuses whatever does not begin with the user and alternate.
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('must alternate') }}{% endif %}{% endfor %}" + PLAIN_TEMPLATE
)


def spoken(template: str, messages: list[dict[str, Any]], **options: Any) -> list[str]:
    text, spans = render_with_spans(make_tokenizer(template), messages, None, options)
    return [text[start:stop] for start, stop in spans]


def test_boundaries_are_what_the_markers_say() -> None:
    plain = render_with_spans(make_tokenizer(PLAIN_TEMPLATE), TALK, None, {})
    marked = render_with_spans(make_tokenizer(MARKED_TEMPLATE), TALK, None, {})
    assert has_markers(MARKED_TEMPLATE) and not has_markers(PLAIN_TEMPLATE)
    assert plain == marked
    assert [plain[0][start:stop] for start, stop in plain[1]] == ["one<|end|>", "two<|end|>"]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (PLAIN_TEMPLATE, ["one<|end|>", "two<|end|>"]),
        (STRICT, ["one<|end|>", "two<|end|>"]),
        (OPENING, ["one<|end|>", "two<|end|>"]),
        (CLOSING, ["one<|end|>", "two<|end|>\n<eos>"]),
        (REASONING, ["one<|end|>", "<think></think>two<|end|>"]),
        (CHANNELS, ["<bos>one", "<bos>two<eos>"]),
        (WORDS, ["one\n", "two\n"]),
    ],
    ids=["plain", "strict", "opening", "closing", "reasoning", "channels", "words"],
)
def test_any_template(template: str, expected: list[str]) -> None:
    assert spoken(template, TALK) == expected


def test_reasoning_that_the_template_drops_from_earlier_turns() -> None:
    talk = [user("a?"), bot("<think>hm</think>one"), user("b?"), bot("<think>oh</think>two")]
    assert spoken(REASONING, talk) == ["one<|end|>", "<think>oh</think>two<|end|>"]


def test_the_assistant_first_twice_and_in_the_middle() -> None:
    assert spoken(PLAIN_TEMPLATE, [bot("hi"), user("a?")]) == ["hi<|end|>"]
    assert spoken(PLAIN_TEMPLATE, [user("a?"), bot("x"), bot("y")]) == ["x<|end|>", "y<|end|>"]
    assert spoken(PLAIN_TEMPLATE, [user("a?")]) == []


def test_a_message_that_the_template_leaves_out() -> None:
    """Nothing but the end token is left of it: the texts part within <|bot|> and <|end|>, which begin alike."""
    template = PLAIN_TEMPLATE.replace("{{ m.content }}", "{{ m.content if m.content else '' }}")
    silent = template.replace("'<|bot|>' if m.role", "'' if not m.content else '<|bot|>' if m.role")
    assert spoken(silent, [user("a?"), bot(""), user("b?"), bot("two")]) == ["<|end|>", "two<|end|>"]


def test_messages_that_repeat_each_other() -> None:
    talk = [user("same"), bot("same"), user("same"), bot("same")]
    for template in (PLAIN_TEMPLATE, CLOSING, REASONING):
        text, spans = render_with_spans(make_tokenizer(template), talk, None, {})
        assert len(spans) == 2 and spans[0][1] < spans[1][0]
        assert all("same<|end|>" in text[start:stop] and "<|user|>" not in text[start:stop] for start, stop in spans)
        assert [text[:start].endswith(("<|bot|>", "<|bot|>\n")) for start, _ in spans] == [True, True]


def test_a_template_that_hides_the_message() -> None:
    reversed_text = "{% for m in messages %}{{ m.role }}{{ m.content | reverse }}{% endfor %}{{ messages | length }}"
    with pytest.raises(RowError, match="hides where the assistant"):
        spoken(reversed_text, TALK)


def test_template_options_and_tools_reach_the_template() -> None:
    tokenizer = make_tokenizer("{{ mood }}{{ tools[0].name if tools }}{{ messages[0].content }}")
    assert render(tokenizer, [user("x")], [{"name": "f"}], {"mood": "calm "}) == "calm fx"


def test_a_template_that_refuses_and_one_that_is_broken() -> None:
    with pytest.raises(RowError, match="must alternate"):
        render(make_tokenizer(STRICT), [bot("x")], None, {})
    with pytest.raises(UserError, match="line 2"):
        render(make_tokenizer("{{ messages }}\n{% if %}"), [user("x")], None, {})


DATED = "{% macro today() %}{{ strftime_now('%d %b %Y %H:%M') }}{% endmacro %}{{ today() }}{{ strftime_now('%y') }}\n"


@pytest.mark.parametrize("template", [PLAIN_TEMPLATE, MARKED_TEMPLATE])
def test_a_template_prints_the_same_date_every_day(template: str) -> None:
    tokenizer = make_tokenizer(DATED + template)
    undated = render(make_tokenizer(template), TALK, None, {})
    assert render_with_spans(tokenizer, TALK, None, {})[0] == f"26 Jul 2024 00:0024\n{undated}"
    assert render(tokenizer, TALK, None, {}) == f"26 Jul 2024 00:0024\n{undated}"


def test_a_variable_of_the_row_may_have_any_name() -> None:
    tokenizer = make_tokenizer(PLAIN_TEMPLATE + "{{ tokenizer }}")
    assert render(tokenizer, TALK, None, {"tokenizer": "mine"}).endswith("mine")
