"""Word problems of two or three arithmetic steps, drawn from a seed, each with its worked solution."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

Choice = TypeVar("Choice")

NAMES = (
    *("Ann", "Ben", "Cara", "Dan", "Eva", "Finn", "Gina", "Hugo"),
    *("Ida", "Jack", "Kim", "Leo", "Mia", "Noah", "Olga", "Paul"),
)
ITEMS = (
    *("apples", "books", "cards", "coins", "cups", "eggs", "flowers"),
    *("keys", "nuts", "pens", "plums", "shells", "stamps", "stones"),
)
BOXES = ("bags", "boxes", "jars", "packs")
GAINS = ("{name} buys {n} more.", "{name} finds {n} more.", "{friend} gives {n} {items} to {name}.")
LOSSES = ("{name} sells {n} of them.", "{name} loses {n} of them.", "{name} gives {n} {items} to {friend}.")

LARGEST = 50  # no intermediate result goes above this
OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}


class Draws:
    """Choices from a seed, the same on every machine and Python.

    Only `Random.random()` is used: it is the one method whose sequence Python promises to keep.
    """

    def __init__(self, seed: str):
        self._random = Random(seed)

    def integer(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(self._random.random() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """True with a probability."""
        return self._random.random() < probability

    def choice(self, options: Sequence[Choice]) -> Choice:
        """One of a sequence's elements."""
        return options[self.integer(0, len(options) - 1)]


@dataclass(frozen=True)
class Step:
    """One line of a worked solution: `{subject} {left}{operation}{right}={result} {items}.`"""

    subject: str
    left: int
    operation: str
    right: int

    @property
    def result(self) -> int:
        return OPERATIONS[self.operation](self.left, self.right)

    @property
    def equation(self) -> str:
        return f"{self.left}{self.operation}{self.right}={self.result}"


@dataclass(frozen=True)
class Problem:
    """A question and the steps to its answer."""

    question: str
    items: str
    steps: tuple[Step, ...]

    @property
    def answer(self) -> int:
        return self.steps[-1].result

    @property
    def key(self) -> str:
        """The chain of equations. Two problems with one key are the same problem in other words."""
        return "; ".join(step.equation for step in self.steps)

    @property
    def solution(self) -> str:
        return write_solution([(step.subject, step.equation) for step in self.steps], self.items, self.answer)

    @property
    def answer_alone(self) -> str:
        return write_solution([], self.items, self.answer)


def write_solution(lines: list[tuple[str, str]], items: str, answer: int) -> str:
    """The text of a solution.

    Args:
        lines: subject ("Ann has") and equation ("3+4=7") of each step.
        items: what is counted.
        answer: the number after `####`.
    """
    return "\n".join([f"{subject} {equation} {items}." for subject, equation in lines] + [f"#### {answer}"])


def draw_problem(draws: Draws) -> Problem:
    """Draw one problem of two or three steps; every result is a whole number from 1 to LARGEST."""
    while True:
        problem = _attempt(draws, num_steps=draws.integer(2, 3))
        if problem is not None:
            return problem


def _attempt(draws: Draws, num_steps: int) -> Problem | None:
    """Draw a story step by step; None when a number leaves its range."""
    name, friend = draws.choice(NAMES), draws.choice(NAMES)
    items = draws.choice(ITEMS)
    if name == friend:
        return None
    story, steps, value = [], [], draws.integer(4, 30)
    if draws.integer(0, 2) == 0:
        number, value = draws.integer(2, 6), draws.integer(2, 6)
        story.append(f"{name} has {number} {draws.choice(BOXES)} with {value} {items} in each.")
        steps.append(Step(f"{name} has", number, "*", value))
    else:
        story.append(f"{name} has {value} {items}.")
    question = f"How many {items} does {name} have now?"
    while len(steps) < num_steps:
        if steps:
            value = steps[-1].result
        remaining = num_steps - len(steps)
        kind = draws.choice(("gain", "gain", "lose", "lose", "times", "share"))
        if kind == "gain":
            number = draws.integer(2, 9)
            story.append(draws.choice(GAINS).format(name=name, friend=friend, items=items, n=number))
            steps.append(Step(f"{name} has", value, "+", number))
        elif kind == "lose":
            number = draws.integer(2, 9)
            story.append(draws.choice(LOSSES).format(name=name, friend=friend, items=items, n=number))
            steps.append(Step(f"{name} keeps", value, "-", number))
        elif kind == "times" and remaining <= 2:
            number = draws.integer(2, 4)
            story.append(f"{friend} has {number} times as many {items} as {name}.")
            steps.append(Step(f"{friend} has", value, "*", number))
            question = f"How many {items} does {friend} have?"
            if remaining == 2:
                question = f"How many {items} do {name} and {friend} have together?"
                steps.append(Step("Together they have", steps[-1].result, "+", value))
        elif kind == "share" and remaining == 1:
            number = draws.integer(2, 5)
            if value % number:
                return None
            story.append(f"{name} shares them equally among {number} friends.")
            steps.append(Step("Each friend gets", value, "/", number))
            question = f"How many {items} does each friend get?"
    if not all(1 <= step.result <= LARGEST for step in steps):
        return None
    return Problem(" ".join([*story, question]), items, tuple(steps))
