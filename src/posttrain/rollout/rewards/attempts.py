"""What happens when a reward function fails: whose fault it is, and what becomes of the other rows."""

import asyncio
import contextlib
import copy
import functools
import logging
import os
import signal
import threading
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
from posttrain.rollout.rewards.functions import FUNCTIONS
from posttrain.rollout.rewards.worker import Call, CallRows

logger = logging.getLogger(__name__)

Arguments = dict[str, Any]
# Makes a call: an answer to a Call, one a row to CallRows.
Ask = Callable[[Call | CallRows], Iterator[Reply]]

# Where more rows than this take too long, one after the other, the rest of the batch is not tried.
MOST_LOSSES = 2
# By which a run is asked to stop.
_KEPT_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


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
    """A call for each row. Where a built-in function is lost on a row, the answer there is at fault: it is wrong."""
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
            is_own = name.text in FUNCTIONS
            (scores.undecided if is_own else scores.failures).append(Failure([len(scores.values)], str(lost)))
            scores.values.append(0.0 if is_own else None)
            losses += not is_own
        if losses > MOST_LOSSES and len(scores.values) < count:
            left = range(len(scores.values), count)
            scores.failures.append(Failure(left, "not tried, after the rows before them"))
            scores.values += [None] * len(left)
    return scores


class Here:
    """Calls in this process and thread, when their scores are asked for: for functions that cannot live elsewhere.

    Args:
        patience: seconds of a call after which a warning says what it waits for; nothing ends the call.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._runner = asyncio.Runner()
        self._functions: dict[FunctionName, Callable[..., Any]] = {}

    def submit(self, name: FunctionName, arguments: Arguments, row_by_row: bool) -> Callable[[], Scores]:
        """As Lane.submit."""
        return functools.partial(score_rows if row_by_row else score_batch, self._ask, name, arguments)

    def load(self, name: FunctionName) -> list[str]:
        """As Lane.load."""
        with self._watched(name):
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
        # What the function changes in its arguments is not changed for others, as in a process of its own.
        arguments = copy.deepcopy(dict(request.arguments))
        if isinstance(request, Call):
            with self._watched(request.name):
                reply = call_function(function, arguments, self._runner)
            yield reply
        else:
            with self._watched(request.name):
                replies = list(call_rows(function, arguments, self._runner))
            yield from replies

    @contextlib.contextmanager
    def _watched(self, name: FunctionName) -> Iterator[None]:
        """Undo what a function of the user's does to the process, and tell when it takes long."""
        if name.text in FUNCTIONS:
            yield
            return
        said = "reward function %s has been running for %g s, and with --reward_workers 0 nothing ends it"
        watch = threading.Timer(self._patience, logger.warning, [said, name.text, self._patience])
        watch.daemon = True
        folder = os.getcwd()
        in_main = threading.current_thread() is threading.main_thread()
        handlers = {number: signal.getsignal(number) for number in _KEPT_SIGNALS} if in_main else {}
        watch.start()
        try:
            yield
        finally:
            watch.cancel()
            if os.getcwd() != folder:
                os.chdir(folder)  # outputs may be named by a relative path
            for number, handler in handlers.items():
                if handler is not None and signal.getsignal(number) is not handler:
                    signal.signal(number, handler)
