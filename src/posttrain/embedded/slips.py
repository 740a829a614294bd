"""Wrong solutions of the kind that a model writes: well formed, and one thing gone wrong in the last step, or a wrong
answer without any working."""

from posttrain.embedded.problems import LARGEST, OPERATIONS, Draws, Problem, write_solution

KINDS = ("result", "result", "operand", "operation", "guess")


def draw_slip(problem: Problem, draws: Draws) -> str:
    """Write a solution of the problem that ends in another answer.

    In its last step, the equation's result is a little off, a number is misread, or the operation is the wrong one; or
    it is nothing but an answer that is a little off.

    Args:
        problem: what is to be solved.
        draws: source of the choices.
    """
    while True:
        text = _attempt(problem, draws.choice(KINDS), draws)
        if text is not None:
            return text


def _attempt(problem: Problem, kind: str, draws: Draws) -> str | None:
    """Slip at the last step; None where that gives a number out of range or, by chance, the right answer."""
    if kind == "guess":
        guess = _nearby(problem.answer, draws)
        is_slip = 1 <= guess <= LARGEST and guess != problem.answer
        return write_solution([], problem.items, guess) if is_slip else None
    *before, last = problem.steps
    operation, right = last.operation, last.right
    if kind == "operation":
        operation = draws.choice([other for other in OPERATIONS if other != operation])
    if kind == "operand":
        right = _nearby(right, draws)
    if operation == "/" and (right < 1 or last.left % right):
        return None
    result = OPERATIONS[operation](last.left, right)
    if kind == "result":
        result = _nearby(result, draws)
    if not 1 <= result <= LARGEST or result == problem.answer:
        return None
    lines = [(step.subject, step.equation) for step in before]
    lines.append((last.subject, f"{last.left}{operation}{right}={result}"))
    return write_solution(lines, problem.items, result)


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
