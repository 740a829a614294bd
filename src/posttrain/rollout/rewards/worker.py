"""A process that runs reward functions, one request after the other; pool.py starts it.

It imports no torch unless a function does.
"""

import asyncio
import contextlib
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from posttrain.errors import UserError
from posttrain.memory_limit import limited_memory
from posttrain.rollout.rewards.calls import FunctionName, Reply, call_function, call_rows, load_function, needed_columns
from posttrain.rollout.rewards.functions import FUNCTIONS
from posttrain.stop import outlive_signals

# Bytes that grading one answer may take on top of what the process has; more is an answer that cannot be read.
GRADING_MEMORY = 2 << 30


class Load(NamedTuple):
    """Import a function. Answered by the columns that it needs, or a Reply with a mistake."""

    name: FunctionName


class Call(NamedTuple):
    """Call a function that is loaded, with a whole batch. Answered by a Reply."""

    name: FunctionName
    arguments: Mapping[str, Any]


class CallRows(NamedTuple):
    """Call it with one row at a time. Answered by a Reply for each, as soon as it is there."""

    name: FunctionName
    arguments: Mapping[str, Any]


Request = Load | Call | CallRows


def main() -> None:
    """Answer requests until the other side closes its end. The process is told two file descriptors: a socket for
    requests and answers, and a pipe that ends with the other process."""
    connection, lifeline = Connection(int(sys.argv[1])), int(sys.argv[2])
    threading.Thread(target=_die_with_parent, args=(lifeline,), daemon=True).start()
    outlive_signals()
    _be_the_first_to_go()
    random.seed(0)  # a function that draws does so alike in every run
    functions: dict[FunctionName, Callable[..., Any]] = {}
    own_id = os.getpid()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr] # the process is ended without a warning
    with asyncio.Runner() as runner:
        try:
            while True:
                request = connection.recv()
                for answer in _answers(request, functions, runner):
                    if os.getpid() != own_id:
                        os._exit(0)  # a function has forked and both came back: one answer would be too many
                    connection.send(answer)
        except (EOFError, OSError, KeyboardInterrupt):
            os._exit(1)  # the other side has gone, or a function has closed the files


def _answers(request: Request, functions: dict[FunctionName, Any], runner: asyncio.Runner) -> Iterator[Any]:
    if isinstance(request, Load):
        try:
            functions[request.name] = load_function(request.name)
            yield needed_columns(functions[request.name])
        except UserError as error:
            yield Reply(mistake=str(error))
    elif isinstance(request, Call):
        yield call_function(functions[request.name], request.arguments, runner)
    elif request.name.text in FUNCTIONS:
        with limited_memory(GRADING_MEMORY):
            yield from call_rows(functions[request.name], request.arguments, runner)
    else:
        yield from call_rows(functions[request.name], request.arguments, runner)


def _be_the_first_to_go() -> None:
    """Where the machine's memory runs out, the kernel ends this process and not the one that trains (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _die_with_parent(lifeline: int) -> None:
    """Wait for the end of the process that holds the other end; then end this one and all that it has started."""
    os.read(lifeline, 1)
    os.killpg(0, signal.SIGKILL)
