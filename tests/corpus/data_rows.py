"""Broken rows in sound files: types, formats of the kinds of training, messages, tools, margins, tokens, lengths."""

from __future__ import annotations

from typing import Any

from helpers_corpus import Case, bad, fine, lines, raw
from helpers_data import bot, user

LONG = "x" * 10_000_000
HALF = "\ud83d"
SECRET = "data:text/plain;base64,cGFzc3dvcmQ="
QUESTION, ANSWER = user("q"), bot("a")
TALK = [QUESTION, ANSWER]
RENDERED = "<|user|>q<|end|>\n<|bot|>a<|end|>\n"


def messages(*given: Any, **more: Any) -> Any:
    """A file with a sound row, and one of these messages."""
    return lines({"messages": TALK}, {"messages": list(given), **more})


def pair(**changed: Any) -> Any:
    """A file with a sound pair, and one that is changed."""
    sound = {"prompt": "p", "chosen": "c", "rejected": "r"}
    return lines(sound, {name: value for name, value in {**sound, **changed}.items() if value is not ...})


def prompt(content: Any, **more: Any) -> Any:
    """A file with a sound prompt, and this one."""
    return lines({"prompt": "p"}, {"prompt": content, **more})


PAIRS = ["pc<|end|>", "pr<|end|>"]

CASES: dict[str, Case] = {
    # Text, and prompt with completion
    "a number for a text": bad("sft", lines({"text": "a"}, {"text": 1}), "line 2", "wrong type in 'text'"),
    "null for a text": bad("sft", lines({"text": "a"}, {"text": None}), "line 2", "none with a value"),
    "a list for a text": bad("sft", lines({"text": ["a"]}), "line 1", "wrong type in 'text'"),
    "true for a text": bad("sft", lines({"text": True}), "line 1", "wrong type in 'text'"),
    "10 MB for a wrong type": bad("sft", lines({"text": [LONG]}), "line 1", "wrong type in 'text'"),
    "10 MB in a wrong column": bad("sft", lines({"body": LONG}), "line 1", "found the columns body"),
    "10 MB in each of 3 rows": bad("sft", lines(*[{"body": LONG[:3_000_000]}] * 3), "3 of the first 3 rows"),
    "a column name of 10 MB": bad("sft", lines({LONG: "a"}), "line 1", "wrong columns"),
    "5,000 columns": bad("sft", lines({f"column_{n}": n for n in range(5000)}), "4,980 more"),
    "2,000 columns beside it": fine("sft", lines({"text": "a"} | {f"c{n}": n for n in range(2000)}), ["a<|end|>"]),
    "an empty text": bad("sft", lines({"text": ""}), "none is left to train on", "line 1"),
    "an empty text among others": fine(
        "sft", lines({"text": "a"}, {"text": ""}), ["a<|end|>"], "1 of 2 rows dropped, no token to train on", "line 2"
    ),
    "columns that differ from row to row": fine(
        "sft", lines({"text": "a"}, {"prompt": "b", "completion": "c"}), ["a<|end|>", "bc<|end|>"]
    ),
    "a wrong row among sound ones": bad("sft", lines(*[{"text": "a"}] * 40, {"txet": "b"}), "line 41", "txet"),
    "a wrong row behind the first thousand": bad("sft", lines(*[{"text": "a"}] * 1500, {"text": 1}), "line 1501"),
    "many kinds of mistakes": bad(
        "sft", lines(*[{"messages": [QUESTION] * n + [{"role": 1}]} for n in range(60)]), "60 of", "52 other mistakes"
    ),
    "a prompt without a completion": bad("sft", lines({"prompt": "a"}), "'completion' is missing"),
    "a completion without a prompt": bad("sft", lines({"completion": "a"}), "'prompt' is missing"),
    "an empty completion": bad("sft", lines({"prompt": "a", "completion": ""}), "line 1", "empty completion"),
    "a completion of spaces": bad("sft", lines({"prompt": "a", "completion": " \n"}), "line 1", "empty completion"),
    "an empty prompt before a completion": fine("sft", lines({"prompt": "", "completion": "ab"}), ["ab<|end|>"]),
    "text and messages mixed": bad("sft", lines({"prompt": "a", "completion": TALK}), "line 1", "different kinds"),
    "pairs for sft": bad("sft", pair(), "`posttrain dpo` trains on them"),
    "half a character": bad("sft", lines({"text": "a" + HALF}), "line 1", "half a character", "character 1"),
    "half a character in messages": bad("sft", messages(user("a" + HALF), ANSWER), "line 2", "half a character"),
    "NUL in a text": fine("sft", lines({"text": "a\0b"}), ["a\0b<|end|>"]),
    "a column called row": fine("sft", lines({"text": "a", "row": 5, "place": 3, "lengths": [9]}), ["a<|end|>"]),
    "rows twice": fine("sft", lines(*[{"text": "a"}] * 3), ["a<|end|>"] * 3),
    "several processes": fine("sft", lines({"text": "a"}), ["a<|end|>"], flags={"dataset_num_proc": 4}),
    "a special token in a text": fine("sft", lines({"text": "a<|end|>"}), ["a<|end|>"]),
    # Messages
    "messages that are a text": bad("sft", lines({"messages": "hello"}), "line 1", "list of messages"),
    "messages as JSON text": bad("sft", lines({"messages": '[{"role": "user"}]'}), "line 1", "list of messages"),
    "messages that are a mapping": bad("sft", lines({"messages": QUESTION}), "line 1", "list of messages"),
    "messages that are texts": bad("sft", lines({"messages": ["q", "a"]}), "line 1", "list of messages"),
    "lists of messages in a list": bad("sft", lines({"messages": [TALK]}), "line 1", "list of messages"),
    "no messages": bad("sft", lines({"messages": []}), "line 1", "empty list of messages"),
    "null among messages": bad("sft", messages(QUESTION, None), "line 2", "list of messages"),
    "a message without a role": bad("sft", messages({"content": "q"}), "line 2", "messages[0].role", "nothing"),
    "a role of null": bad("sft", messages({"role": None, "content": "q"}), "messages[0].role"),
    "a role that is a number": bad("sft", messages(QUESTION, {"role": 3, "content": "a"}), "messages[1].role", "3"),
    "a role that is a list": bad("sft", messages({"role": ["user"], "content": "q"}), "messages[0].role"),
    "a message without content": bad("sft", messages({"role": "user"}), "messages[0].content"),
    "content of null": bad("sft", messages({"role": "user", "content": None}), "messages[0].content"),
    "content that is a number": bad("sft", messages({"role": "user", "content": 4}), "messages[0].content", "4"),
    "content that is a mapping": bad("sft", messages({"role": "user", "content": {"a": 1}}), "messages[0].content"),
    "an image": bad(
        "sft", messages(user([{"type": "image_url", "image_url": {"url": SECRET}}])), "images and sound", "line 2"
    ),
    "a part that is a text": bad("sft", messages(user(["a"])), "line 2", "messages[0].content"),
    "a part without its text": bad("sft", messages(user([{"type": "text"}])), "line 2", "messages[0].content"),
    "parts of text": fine("sft", lines({"messages": [user([{"type": "text", "text": "q"}]), ANSWER]}), [RENDERED]),
    "an empty last answer": bad("sft", messages(QUESTION, bot("")), "line 2", "empty completion"),
    "an empty answer in the middle": fine(
        "sft", lines({"messages": [QUESTION, bot(""), *TALK]}), ["<|user|>q<|end|>\n<|bot|><|end|>\n" + RENDERED]
    ),
    "no answer to learn from": bad(
        "sft", lines({"messages": [QUESTION]}), "none is left to train on", flags={"assistant_only_loss": True}
    ),
    "a misspelt role, answers alone": bad(
        "sft",
        lines({"messages": [QUESTION, {"role": "asistant", "content": "a"}]}),
        "none is left to train on",
        flags={"assistant_only_loss": True},
    ),
    "ShareGPT": fine(
        "sft", lines({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}), [RENDERED]
    ),
    "ShareGPT without a sender": bad("sft", lines({"conversations": [{"value": "q"}]}), "conversations[0].role"),
    "ShareGPT without a value": bad("sft", lines({"conversations": [{"from": "human"}]}), "conversations[0].content"),
    "tools that are broken JSON": bad("sft", messages(*TALK, tools="[{"), "line 2", "broken JSON in 'tools'"),
    "tools nested very deep": bad("sft", messages(*TALK, tools="[" * 9999), "line 2", "broken JSON in 'tools'"),
    "tools that are a mapping": bad("sft", messages(*TALK, tools={"a": 1}), "line 2", "wrong type in 'tools'"),
    "tools that are texts": bad("sft", messages(*TALK, tools=["f"]), "line 2", "cannot render"),
    "variables that are a list": bad("sft", messages(*TALK, chat_template_kwargs=[1]), "'chat_template_kwargs'"),
    "variables that replace the template": bad(
        "sft", messages(*TALK, chat_template_kwargs={"chat_template": "{{ 1 }}"}), "line 2", "'chat_template'"
    ),
    "variables that switch tokens on": bad("sft", messages(*TALK, chat_template_kwargs={"tokenize": True}), "line 2"),
    "variables that put a prompt behind": bad(
        "sft", messages(*TALK, chat_template_kwargs={"add_generation_prompt": True}), "line 2", "no variable"
    ),
    # Tokens
    "no tokens": bad("sft", lines({"input_ids": []}), "line 1", "empty input_ids"),
    "tokens that are texts": bad("sft", lines({"input_ids": ["1"]}), "line 1", "whole numbers"),
    "tokens that are shares": bad("sft", lines({"input_ids": [1.5]}), "line 1", "whole numbers"),
    "tokens that are true": bad("sft", lines({"input_ids": [True]}), "line 1", "whole numbers"),
    "a negative token": bad("sft", lines({"input_ids": [7, -1]}), "line 1", "from 0", "-1"),
    "a token outside the vocabulary": bad("sft", lines({"input_ids": [7, 99999]}), "line 1", "99999", "vocabulary"),
    "a token of 70 bits": bad("sft", lines({"input_ids": [7, 2**70]}), "line 1", "vocabulary"),
    "labels of another length": bad("sft", lines({"input_ids": [7, 8], "labels": [7]}), "line 1", "'labels'", "1 num"),
    "labels that are other tokens": bad("sft", lines({"input_ids": [7, 8], "labels": [7, 9]}), "line 1", "token 1"),
    "labels of 70 bits": bad("sft", lines({"input_ids": [7, 8], "labels": [7, 2**70]}), "line 1", "token 1"),
    "labels that are null": bad("sft", lines({"input_ids": [7, 8], "labels": [None, 8]}), "line 1", "'labels'"),
    "all labels masked": bad("sft", lines({"input_ids": [7, 8], "labels": [-100, -100]}), "none is left", "line 1"),
    "a mask of other numbers": bad("sft", lines({"input_ids": [7, 8], "completion_mask": [0, 7]}), "0 or 1", "7"),
    "a mask of 70 bits": bad("sft", lines({"input_ids": [7, 8], "assistant_masks": [0, 2**70]}), "0 or 1"),
    # Lengths
    "a prompt that fills max_length": bad(
        "sft", lines({"prompt": "x" * 50, "completion": "y"}), "max_length 16", "line 1", flags={"max_length": 16}
    ),
    "rows that are cut": fine(
        "sft", lines({"text": "x" * 50}), ["x" * 16], "1 of 1 rows cut to --max_length 16", flags={"max_length": 16}
    ),
    "a side of a pair that is too long": fine(
        "reward", pair(prompt="x" * 50), PAIRS, "1 of 2 rows dropped, a side is longer", "line 2",
        flags={"max_length": 16},
    ),
    "completions of a text column": bad("sft", lines({"text": "a"}), "line 1", flags={"completion_only_loss": True}),
    "answers of a text column": bad("sft", lines({"text": "a"}), "line 1", flags={"assistant_only_loss": True}),
    # Pairs
    "chosen is rejected": bad("preference", pair(chosen="r"), "line 2", "chosen = rejected"),
    "chosen is rejected in messages": bad("reward", lines({"chosen": TALK, "rejected": TALK}), "chosen = rejected"),
    "no chosen": bad("preference", pair(chosen=...), "line 2", "wrong columns", "chosen"),
    "rejected of null": bad("preference", pair(rejected=None), "line 2", "wrong columns"),
    "an empty chosen": bad("preference", pair(chosen=""), "line 2", "empty completion in 'chosen'"),
    "a rejected of spaces": bad("reward", pair(rejected="  "), "line 2", "empty completion in 'rejected'"),
    "a chosen that is a number": bad("preference", pair(chosen=1), "line 2", "wrong type in 'chosen'"),
    "chosen text, rejected messages": bad("preference", pair(rejected=[ANSWER]), "line 2", "different kinds"),
    "prompt text, answers messages": bad(
        "preference", pair(prompt="p", chosen=[bot("c")], rejected=[bot("r")]), "line 2", "different kinds"
    ),
    "an empty list for chosen": bad("preference", pair(chosen=[]), "line 2", "empty list of messages in 'chosen'"),
    "a prompt that is a number": bad("preference", pair(prompt=3), "line 2", "wrong type in 'prompt'"),
    "conversations for dpo": bad("preference", lines({"messages": TALK}), "`posttrain sft` trains on rows like these"),
    "unpaired rows": bad("preference", lines({"prompt": "p", "completion": "c", "label": True}), "wrong columns"),
    "unpaired rows for reward": bad("reward", lines({"prompt": "p", "completion": "c", "label": False}), "line 1"),
    "ranked rows": bad("reward", lines({"prompt": "p", "responses": ["a", "b"], "scores": [1, 2]}), "responses"),
    "a margin that is a text": bad("reward", pair(margin="1"), "line 2", "wrong type in 'margin'"),
    "a margin that is true": bad("reward", pair(margin=True), "line 2", "wrong type in 'margin'"),
    "a margin of NaN": bad("reward", pair(margin=float("nan")), "line 2", "'margin'", "NaN"),
    "an infinite margin": bad("reward", pair(margin=float("inf")), "line 2", "'margin'"),
    "a margin of 400 digits": bad("reward", pair(margin=10**400), "line 2", "'margin'"),
    "a margin of null": fine("reward", pair(margin=None), PAIRS * 2),
    "columns of our own names": fine("preference", lines(
        {"prompt": "p", "chosen": "c", "rejected": "r", "input_ids": [1], "prompt_ids": "x", "row": -1, "margin": 1}
    ), PAIRS),
    "no common beginning": fine("preference", lines({"chosen": "c", "rejected": "r"}), ["c<|end|>", "r<|end|>"]),
    "one answer begins the other": fine("preference", pair(rejected="cc"), [*PAIRS, "pc<|end|>", "pcc<|end|>"]),
    "half a character in a pair": bad("preference", pair(rejected=HALF), "line 2", "half a character"),
    "an image in a pair": bad(
        "preference", pair(prompt=[user([{"type": "image"}])], chosen=[ANSWER], rejected=[bot("b")]), "line 2", "images"
    ),
    # Prompts
    "an empty prompt": bad("prompts", prompt(""), "line 2", "empty prompt"),
    "a prompt of no messages": bad("prompts", prompt([]), "line 2", "empty list of messages"),
    "a prompt of null": bad("prompts", prompt(None), "line 2", "wrong columns"),
    "a number for a prompt": bad("prompts", prompt(7), "line 2", "wrong type in 'prompt'"),
    "a mapping for a prompt": bad("prompts", prompt(QUESTION), "line 2", "wrong type in 'prompt'"),
    "whole conversations for grpo": bad("prompts", lines({"messages": TALK}), "`posttrain sft` trains on them"),
    "half a character in a prompt": bad("prompts", prompt(HALF), "line 2", "half a character"),
    "half a character beside a prompt": bad("prompts", prompt("a", solution=HALF), "line 2", "half a character"),
    "half a character in a column's name": bad("prompts", prompt("a", **{HALF: 1}), "line 2", "half a character"),
    "a prompt that is too long": bad(
        "prompts", prompt("x" * 50), "line 2", "50 tokens", flags={"max_prompt_tokens": 9, "long_prompts": "error"}
    ),
    "prompts that are all too long": bad(
        "prompts", lines({"prompt": "x" * 50}), "none is left", flags={"max_prompt_tokens": 9, "long_prompts": "drop"}
    ),
    "a long prompt left out": fine(
        "prompts", prompt("x" * 50), ["p"], "1 of 2 rows dropped", "line 2",
        flags={"max_prompt_tokens": 9, "long_prompts": "drop"},
    ),
    "a long prompt cut": fine(
        "prompts", prompt("x" * 50), ["p", "x" * 9], "1 of 2 rows cut",
        flags={"max_prompt_tokens": 9, "long_prompts": "truncate_left"},
    ),
    "columns of our own names beside a prompt": fine(
        "prompts", prompt("b", row=1, place="x", prompt_ids=[1], columns={"a": 1}, completions=0), ["p", "b"]
    ),
    "NaN and huge numbers beside a prompt": fine("prompts", prompt("b", a=float("nan"), b=10**300), ["p", "b"]),
    "a password in an address, for data": bad(
        "sft", lambda folder: "https://user:hunter2@example.com/rows.jsonl", "example.com"
    ),
    "a row of other letters": bad("sft", raw('{"teхt": "a"}\n'), "line 1", "found the columns teхt"),
}  # fmt: skip
