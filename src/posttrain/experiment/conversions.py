"""Rows of well-known data sets as rows of the stages: what `convert` names in the section `prepare` of params.yaml.

For data of another shape: a function here, and its name in CONVERSIONS. A function is told the columns of one row and
gives any number of rows, with the columns that the methods read (docs/sft.md, docs/dpo.md, docs/grpo.md).
"""

from collections.abc import Callable, Iterator
from typing import Any

Columns = dict[str, Any]


def as_they_are(row: Columns) -> Iterator[Columns]:
    """The row itself."""
    yield row


def gsm8k_solution(row: Columns) -> Iterator[Columns]:
    """`question` and `answer` as a conversation, to learn from."""
    yield {"messages": [_message("user", row["question"]), _message("assistant", row["answer"])]}


def gsm8k_problem(row: Columns) -> Iterator[Columns]:
    """`question` as a prompt, `answer` (which ends in `#### number`) as the solution to grade by."""
    yield {"prompt": [_message("user", row["question"])], "solution": row["answer"]}


def gsm8k_instructed(row: Columns) -> Iterator[Columns]:
    """The same, with the form of the answer said: for models that have not learnt it from GSM8K's solutions."""
    for problem in gsm8k_problem(row):
        problem["prompt"][0]["content"] += "\n\nThink step by step, and end with a line of #### and the number."
        yield problem


def gsm8k_pairs(row: Columns) -> Iterator[Columns]:
    """Solutions of several models to a question (columns with `solution` and `is_correct`) as pairs: each right one
    with a wrong one, as many as there are of both."""
    solutions = [value for value in row.values() if isinstance(value, dict)]
    right = [each["solution"] for each in solutions if each["is_correct"]]
    wrong = [each["solution"] for each in solutions if not each["is_correct"]]
    for chosen, rejected in zip(right, wrong, strict=False):
        yield {
            "prompt": [_message("user", row["question"])],
            "chosen": [_message("assistant", chosen)],
            "rejected": [_message("assistant", rejected)],
        }


def explicit_prompt(row: Columns) -> Iterator[Columns]:
    """`chosen` and `rejected` as whole conversations, which differ in the last message: what comes before as `prompt`.
    Rows whose conversations differ earlier, or not at all, are left out."""
    *prompt, chosen = row["chosen"]
    *other, rejected = row["rejected"]
    if prompt == other and chosen != rejected:
        yield {"prompt": prompt, "chosen": [chosen], "rejected": [rejected]}


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


CONVERSIONS: dict[str, Callable[[Columns], Iterator[Columns]]] = {
    "as_they_are": as_they_are,
    "gsm8k_solution": gsm8k_solution,
    "gsm8k_problem": gsm8k_problem,
    "gsm8k_instructed": gsm8k_instructed,
    "gsm8k_pairs": gsm8k_pairs,
    "explicit_prompt": explicit_prompt,
}
