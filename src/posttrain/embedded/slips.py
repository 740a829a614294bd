"""Wrong solutions of the kind that a model writes: well formed, every equation right, and yet not the answer."""

from posttrain.embedded.problems import LARGEST, OPERATIONS, Draws, Problem, write_solution

KINDS = ("operation", "operation", "early", "guess")


def draw_slip(problem: Problem, draws: Draws) -> str:
    """Write a solution of the problem that ends in another answer.

    The last step takes the wrong operation, or is left out, or there are no steps: the answer is guessed, a little off.

    Args:
        problem: what is to be solved.
        draws: source of the choices.
    """
    while True:
        text = _attempt(problem, draws.choice(KINDS), draws)
        if text is not None:
            return text


def _attempt(problem: Problem, kind: str, draws: Draws) -> str | None:
    """A slip of this kind; None where that gives a number out of range or, by chance, the right answer."""
    *before, last = problem.steps
    lines = [(step.subject, step.equation) for step in before]
    if kind == "guess":
        lines, result = [], _nearby(problem.answer, draws)
    elif kind == "early":
        result = before[-1].result
    else:
        operation = draws.choice([other for other in OPERATIONS if other != last.operation])
        if operation == "/" and last.left % last.right:
            return None
        result = OPERATIONS[operation](last.left, last.right)
        lines.append((last.subject, f"{last.left}{operation}{last.right}={result}"))
    is_slip = 1 <= result <= LARGEST and result != problem.answer
    return write_solution(lines, problem.items, result) if is_slip else None


def _nearby(number: int, draws: Draws) -> int:
    """A number that is taken for this one: a unit or a ten off, a digit misread, or two digits exchanged."""
    slip = draws.integer(0, 3)
    if slip == 0:
        return number + draws.choice((-2, -1, 1, 2))
    if slip == 1 and number >= 10:
        return number + draws.choice((-10, 10))
    if slip == 2 and number >= 10:
        return number - number % 10 + draws.integer(0, 9)
    digits = str(number)
    return int(digits[:-2] + digits[::-1][:2])
