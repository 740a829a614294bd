"""The same problems answered by every model, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from posttrain.experiment.report.gather import Gathered, Group, Result
from posttrain.grading import MARK, final_answer

MOST_DIFFERING = 40  # problems that some answer right and others wrong
MOST_AGREEING = 10  # that all answer right, and as many that all answer wrong
KINDS = {"differing": "some right, some wrong", "right": "all right", "wrong": "all wrong"}


@dataclass(frozen=True)
class Column:
    """Answers of a model.

    Args:
        model: its name.
        experiments: in which it gave them.
        answers: by the problem's id.
    """

    model: str
    experiments: list[str]
    answers: Mapping[str, Result]


@dataclass(frozen=True)
class Answer:
    """An answer on the page: `before`, the number that is graded, `after`; and what is said of it."""

    column: int
    before: str
    graded: str
    after: str
    correct: bool
    ended: bool
    num_tokens: int
    reward_score: float | None


@dataclass(frozen=True)
class Problem:
    """A problem: its id, kind (of KINDS), messages, the right number, and its answers; None: there is none."""

    id: str
    kind: str
    messages: list[tuple[str, str]]
    right: str
    answers: list[Answer | None]


@dataclass(frozen=True)
class Samples:
    """What is shown.

    Args:
        columns: a model each, and which experiments gave these answers.
        problems: those that were chosen.
        counts: by kind, of all problems.
    """

    columns: list[Column]
    problems: list[Problem]
    counts: dict[str, int]


def samples_of(gathered: Gathered) -> Samples:
    """Choose problems, the first of each kind in the order of the first model's file, and lay their answers out."""
    columns = []
    for model in gathered.models:
        groups: list[Group] = gathered.groups(lambda one, name: gathered.answers.get(one.name, {}).get(name), model)
        for group in groups:
            columns.append(Column(model, group.names, {row["id"]: row for row in group.value}))
    if not columns:
        return Samples([], [], {})
    by_kind: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for key in columns[0].answers:
        by_kind[_kind([column.answers[key] for column in columns if key in column.answers])].append(key)
    limits = {"differing": MOST_DIFFERING, "right": MOST_AGREEING, "wrong": MOST_AGREEING}
    chosen = [(kind, key) for kind, keys in by_kind.items() for key in keys[: limits[kind]]]
    problems = [_problem(kind, key, columns) for kind, key in chosen]
    return Samples(columns, problems, {kind: len(keys) for kind, keys in by_kind.items()})


def marked(text: str) -> tuple[str, str, str]:
    """An answer in three parts, of which the second is the number that is graded; empty where there is none."""
    before, mark, rest = text.rpartition(MARK)
    line, end, after = rest.partition("\n")
    if not mark or final_answer(text) is None:
        return text, "", ""
    return f"{before}{mark}{line[: len(line) - len(line.lstrip())]}", line.strip(), end + after


def _kind(answers: Sequence[Result]) -> str:
    right = {bool(answer["correct"]) for answer in answers}
    return "differing" if len(right) > 1 else "right" if right == {True} else "wrong"


def _problem(kind: str, key: str, columns: Sequence[Column]) -> Problem:
    row = columns[0].answers[key]
    number = final_answer(row["reference"])
    messages = [(str(message["role"]), str(message["content"])) for message in row["prompt"]]
    answers = [_answer(place, column.answers.get(key)) for place, column in enumerate(columns)]
    return Problem(key, kind, messages, row["reference"] if number is None else str(number), answers)


def _answer(place: int, row: Result | None) -> Answer | None:
    if row is None:
        return None
    score = row.get("reward_score")
    return Answer(place, *marked(row["completion"]), row["correct"], row["ended"], row.get("num_tokens", 0), score)
