"""Rows, understood and checked."""

from typing import Any

import pytest
from helpers_data import bot, user

from posttrain.data.formats import Example, TokenExample, parse_preference, parse_sft, split_common_prompt
from posttrain.data.problems import Problems, RowError
from posttrain.errors import UserError

TALK = [user("a?"), bot("b")]


def sft(**columns: Any) -> Example:
    example = parse_sft(columns, "text")
    assert isinstance(example, Example)
    return example


def test_formats_of_sft() -> None:
    assert sft(text="a") == Example(None, ("a",))
    assert sft(messages=TALK) == Example(None, (TALK,))
    assert sft(prompt="a", completion="b") == Example("a", ("b",))
    assert sft(prompt=TALK[:1], completion=TALK[1:]) == Example(TALK[:1], (TALK[1:],))
    assert parse_sft({"body": "a"}, "body") == Example(None, ("a",))


def test_conversations_of_from_and_value() -> None:
    shared = [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b"}]
    assert sft(conversations=shared) == Example(None, (TALK,))
    assert sft(conversations=[{"from": "user", "value": "a?"}, {"from": "assistant", "value": "b"}]) == sft(
        messages=TALK
    )
    assert sft(conversations=TALK) == sft(messages=TALK)


def test_which_format_goes_first() -> None:
    assert sft(prompt="a", messages=TALK).completions == (TALK,)
    assert sft(prompt="a", completion="b", messages=TALK, text="t").prompt == "a"
    assert sft(messages=TALK, text="t").completions == (TALK,)
    assert parse_sft({"messages": TALK, "body": "t"}, "body") == Example(None, ("t",))
    assert sft(messages=None, text="t").completions == ("t",)


def test_tools_and_template_options() -> None:
    tools = [{"name": "f"}]
    for given in (tools, '[{"name": "f"}]'):
        example = sft(messages=TALK, tools=given, chat_template_kwargs={"think": False, "absent": None})
        assert (example.tools, example.template_kwargs) == (tools, {"think": False})
    assert sft(messages=TALK, tools=[]).tools is None
    assert sft(messages=TALK, tools="").tools is None


def test_messages_from_a_table_lose_their_empty_keys() -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}], "name": None}
    assert sft(messages=[message]).completions[0] == [{"role": "assistant", "tool_calls": [{"name": "f"}]}]


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert sft(messages=[user("?"), {"role": "assistant", "content": parts}]).completions[0][1] == bot("ab")


def test_rows_of_tokens() -> None:
    assert parse_sft({"input_ids": [1, 2, 3]}, "text") == TokenExample([1, 2, 3])
    labels = parse_sft({"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "completion_mask": [0, 0, 1]}, "text")
    assert labels == TokenExample([1, 2, 3], None, [0, 1, 1])
    masks = parse_sft({"input_ids": [1, 2, 3], "completion_mask": [0, 0, 1], "assistant_masks": [0, 1, 1]}, "text")
    assert masks == TokenExample([1, 2, 3], [0, 0, 1], [0, 1, 1])


def test_preference_formats() -> None:
    chosen, rejected = [bot("yes")], [bot("no")]
    assert parse_preference({"prompt": "a", "chosen": "b", "rejected": "c"}) == Example("a", ("b", "c"))
    explicit = parse_preference({"prompt": [user("?")], "chosen": chosen, "rejected": rejected, "margin": 1})
    assert explicit == Example([user("?")], (chosen, rejected), margin=1.0)
    implicit = parse_preference({"chosen": [user("?"), *chosen], "rejected": [user("?"), *rejected]})
    assert implicit == Example([user("?")], (chosen, rejected), is_prompt_given=False)
    with_text = parse_preference({"prompt": "?", "chosen": [user("?"), *chosen], "rejected": [user("?"), *rejected]})
    assert with_text == implicit


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("Q: ? A: yes", "Q: ? A: no", ("Q: ? A:", " yes", " no")),
        ("Q: yes", "Q: yesterday", ("Q: ye", "s", "sterday")),
        ("A: ", "A: no", ("A:", " ", " no")),
        ("yes", "no", ("", "yes", "no")),
        ([user("?"), bot("y")], [user("?"), bot("n")], ([user("?")], [bot("y")], [bot("n")])),
        ([user("?"), bot("y")], [user("?"), bot("y"), user("!")], ([user("?")], [bot("y")], [bot("y"), user("!")])),
    ],
)
def test_the_common_beginning_is_the_prompt(chosen: Any, rejected: Any, expected: Any) -> None:
    assert split_common_prompt(chosen, rejected) == expected
    prompt, *others = split_common_prompt(rejected, chosen)
    assert (prompt, *others[::-1]) == expected


BAD_SFT = {
    "wrong columns for sft": [
        {"question": "a", "answer": "b"},
        {},
        {"text": None},
        {"prompt": "a"},
        {"chosen": "a", "rejected": "b"},
    ],
    "wrong type in 'text'": [{"text": 3}],
    "wrong type in 'messages'": [{"messages": "hi"}, {"messages": ["hi"]}, {"messages": {"role": "user"}}],
    "wrong type in 'messages[1].role'": [{"messages": [user("a"), {"content": "b"}]}],
    "wrong type in 'messages[0].content'": [
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": 3}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]},
    ],
    "wrong type in 'prompt'": [{"prompt": 3, "completion": "b"}],
    "wrong type in 'tools'": [{"messages": TALK, "tools": {"name": "f"}}],
    "broken JSON in 'tools'": [{"messages": TALK, "tools": "[{"}],
    "wrong type in 'chat_template_kwargs'": [{"messages": TALK, "chat_template_kwargs": ["a"]}],
    "'prompt' and 'completion' are of different kinds": [{"prompt": "a", "completion": [bot("b")]}],
    "empty list of messages in 'messages'": [{"messages": []}],
    "empty completion in 'completion'": [
        {"prompt": "a", "completion": ""},
        {"prompt": "a", "completion": " \n"},
        {"prompt": [user("a")], "completion": [bot("")]},
    ],
    "empty completion in 'messages'": [{"messages": [user("a"), bot("")]}],
    "wrong type in 'input_ids'": [
        {"input_ids": "12"},
        {"input_ids": [1.5]},
        {"input_ids": [-1]},
        {"input_ids": [True]},
    ],
    "empty input_ids": [{"input_ids": []}],
    "wrong length of 'labels'": [{"input_ids": [1, 2], "labels": [1]}],
    "labels differ from input_ids": [{"input_ids": [1, 2], "labels": [2, 2]}],
}
BAD_PREFERENCE = {
    "wrong columns for preference training (dpo, reward)": [{"prompt": "a", "chosen": "b"}, {"messages": TALK}],
    "wrong type in 'rejected'": [{"chosen": "a", "rejected": 3}],
    "'chosen' and 'rejected' are of different kinds": [{"chosen": "a", "rejected": [bot("b")]}],
    "'prompt' and 'chosen' are of different kinds": [
        {"prompt": [user("?")], "chosen": "a", "rejected": "b"},
        {"prompt": "?", "chosen": [bot("a")], "rejected": [bot("b")]},
    ],
    "empty completion in 'rejected'": [{"prompt": "?", "chosen": "a", "rejected": ""}],
    "empty completion in 'chosen'": [{"prompt": [user("?")], "chosen": [bot(" ")], "rejected": [bot("b")]}],
    "chosen = rejected": [{"prompt": "?", "chosen": "a", "rejected": "a"}, {"chosen": TALK, "rejected": TALK}],
    "wrong type in 'margin'": [{"chosen": "a", "rejected": "b", "margin": "much"}],
}


@pytest.mark.parametrize(("headline", "row"), [(key, row) for key, rows in BAD_SFT.items() for row in rows])
def test_bad_rows_of_sft(headline: str, row: dict[str, Any]) -> None:
    with pytest.raises(RowError) as caught:
        parse_sft(row, "text")
    assert caught.value.headline == headline


@pytest.mark.parametrize(("headline", "row"), [(key, row) for key, rows in BAD_PREFERENCE.items() for row in rows])
def test_bad_rows_of_preferences(headline: str, row: dict[str, Any]) -> None:
    with pytest.raises(RowError) as caught:
        parse_preference(row)
    assert caught.value.headline == headline


def test_wrong_columns_say_what_was_found_and_what_is_needed() -> None:
    with pytest.raises(RowError) as caught:
        parse_sft({"question": "2+2?", "answer": "4"}, "text")
    detail = caught.value.detail
    assert (
        "question, answer" in detail
        and '"2+2?"' in detail
        and '"messages"' in detail
        and "--dataset_text_field" in detail
    )
    with pytest.raises(RowError, match="posttrain dpo"):
        parse_sft({"chosen": "a", "rejected": "b"}, "text")
    with pytest.raises(RowError, match="posttrain sft"):
        parse_preference({"messages": TALK})


def test_problems_name_the_first_places_and_count_the_rest() -> None:
    first, second = Problems(), Problems()
    for number in range(1, 3):
        first.add(f"f line {number}", RowError("empty", f"detail {number}"))
    for number in range(3, 6):
        second.add(f"f line {number}", RowError("empty", f"detail {number}"))
    second.add("f line 9", RowError("odd", "other"))
    first.update(second)
    with pytest.raises(UserError) as caught:
        first.raise_if_any("f", "10 rows")
    assert str(caught.value) == (
        "f: 6 of 10 rows cannot be used\n"
        "empty (f line 1, f line 2, f line 3 and 2 more): detail 1\n"
        "odd (f line 9): other"
    )
