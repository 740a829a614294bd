"""What happens when a reward function fails: whose fault it is, and what becomes of the other rows."""

import asyncio
import functools
from collections.abc import Callable, Iterator
from typing import Any

from posttrain.errors import UserError
from posttrain.rollout.rewards.batch import Failure, Scores
from posttrain.rollout.rewards.calls import (
    FunctionName,
    Reply,
    call_function,
    call_rows,
    load_function,
    needed_columns,
)
from posttrain.rollout.rewards.worker import Call, CallRows

Arguments = dict[str, Any]
# Makes a call: an answer to a Call, one a row to CallRows.
Ask = Callable[[Call | CallRows], Iterator[Reply]]

# Where more rows than this take too long, one after the other, the rest of the batch is not tried.
MOST_LOSSES = 2


class CallLostError(Exception):
    """A call took too long, or ended its process. The message says which."""


def score_batch(ask: Ask, name: FunctionName, arguments: Arguments) -> Scores:
    """One call with all rows; where that fails, one a row: then the row at fault is known, and the others are scored.

    Raises:
        UserError: the function is at fault, whatever the rows: a column it needs is missing, or it returned no list
            with an entry a row.
    """
    try:
        reply = next(ask(Call(name, arguments)))
        if reply.mistake:
            raise UserError(f"reward function {name.text}: {reply.mistake}")
        if not reply.error:
            return Scores(reply.values, [Failure([row], reason) for row, reason in reply.bad.items()])
        reason = reply.error
    except CallLostError as lost:
        reason = str(lost)
    scores = score_rows(ask, name, arguments)
    if not scores.failures:
        rows = range(len(scores.values))
        scores.failures.append(Failure(rows, f"{reason}, with all rows together, though not with one at a time"))
    return scores


def score_rows(ask: Ask, name: FunctionName, arguments: Arguments) -> Scores:
    """A call for each row."""
    count = len(arguments["completions"])
    scores = Scores([])
    losses = 0
    while (first := len(scores.values)) < count:
        rest = {key: values[first:] for key, values in arguments.items()}
        try:
            for reply in ask(CallRows(name, rest)):
                reason = reply.error or reply.mistake or reply.bad.get(0)
                if reason:
                    scores.failures.append(Failure([len(scores.values)], reason))
                scores.values.append(reply.values[0] if reply.values else None)
        except CallLostError as lost:
            scores.failures.append(Failure([len(scores.values)], str(lost)))
            scores.values.append(None)
            losses += 1
        if losses > MOST_LOSSES and len(scores.values) < count:
            left = range(len(scores.values), count)
            scores.failures.append(Failure(left, "not tried, after the rows before them"))
            scores.values += [None] * len(left)
    return scores


class Here:
    """Calls in this process and thread, when their scores are asked for: for functions that cannot live elsewhere."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._functions: dict[FunctionName, Callable[..., Any]] = {}

    def submit(self, name: FunctionName, arguments: Arguments, row_by_row: bool) -> Callable[[], Scores]:
        """As Lane.submit."""
        return functools.partial(score_rows if row_by_row else score_batch, self._ask, name, arguments)

    def load(self, name: FunctionName) -> list[str]:
        """As Lane.load."""
        self._functions[name] = load_function(name)
        return needed_columns(self._functions[name])

    def prepare(self, name: FunctionName) -> None:
        """As Lane.prepare; here there is nothing to begin with."""

    def close(self) -> None:
        """End the event loop."""
        self._runner.close()

    def _ask(self, request: Call | CallRows) -> Iterator[Reply]:
        if request.name not in self._functions:
            self.load(request.name)
        function = self._functions[request.name]
        if isinstance(request, Call):
            yield call_function(function, request.arguments, self._runner)
        else:
            yield from call_rows(function, request.arguments, self._runner)
