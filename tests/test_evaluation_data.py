"""Held-out rows: what is read, what is refused, and ids that stay with their rows."""

from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import UserError
from posttrain.experiment.evaluation_data import read_pairs, read_problems
from tests.tiny import write_preference, write_rows

QUESTION = [{"role": "user", "content": "2 + 3?"}]
ANSWER = [{"role": "assistant", "content": "#### 5"}]


def test_ids_belong_to_the_content_and_not_to_the_place(tmp_path: Path) -> None:
    rows = [{"prompt": [{"role": "user", "content": f"{n} + 1?"}], "solution": str(n + 1)} for n in range(4)]
    before = {row["solution"]: row["id"] for row in read_problems(str(write_rows(tmp_path / "a.jsonl", rows)))}
    moved = [rows[3], {"source": "x", **rows[1]}, rows[0]]  # another order, one less, a column that nobody reads
    after = {row["solution"]: row["id"] for row in read_problems(str(write_rows(tmp_path / "b.jsonl", moved)))}
    assert len(set(before.values())) == 4
    assert after == {key: before[key] for key in ("4", "2", "1")}


def test_the_solution_may_be_an_answer_in_gsm8ks_form(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"prompt": QUESTION, "answer": "2 + 3 = 5\n#### 5"}])
    assert [row["solution"] for row in read_problems(str(path))] == ["2 + 3 = 5\n#### 5"]


def test_a_row_that_stands_twice_has_two_ids(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"prompt": QUESTION, "solution": "5"}] * 2)
    first, second = (row["id"] for row in read_problems(str(path)))
    assert second == f"{first}-2"


def test_pairs_keep_their_three_columns(tmp_path: Path) -> None:
    pairs = read_pairs(str(write_preference(tmp_path / "pairs.jsonl", 3)))
    assert len({pair["id"] for pair in pairs}) == 3
    assert all(list(pair) == ["id", "prompt", "chosen", "rejected"] for pair in pairs)
    assert pairs[0]["id"].startswith("preference/")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "2 + 3?", "solution": "5"}, r"line 2: wanted a column prompt with a list of messages"),
        ({"prompt": [], "solution": "5"}, r"line 2: wanted a column prompt with a list of messages"),
        ({"prompt": [{"role": "user"}], "solution": "5"}, r"line 2: wanted a column prompt with a list of messages"),
        (
            {"prompt": QUESTION, "result": "5"},
            r"line 2: wanted a column solution with text; the row has prompt, result",
        ),
        ({"prompt": QUESTION, "solution": "five"}, r"line 2: column solution: .*five"),
    ],
)
def test_a_problem_that_cannot_be_graded_is_named(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"prompt": QUESTION, "solution": "5"}, row])
    with pytest.raises(UserError, match=message):
        read_problems(str(path))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": QUESTION, "chosen": ANSWER}, "line 1: wanted a column rejected with a list of messages"),
        ({"prompt": QUESTION, "chosen": ANSWER, "rejected": ANSWER + QUESTION}, "column rejected holds 2 messages"),
    ],
)
def test_a_pair_that_cannot_be_scored_is_named(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_pairs(str(write_rows(tmp_path / "a.jsonl", [row])))
