"""Processes for reward functions, with a hard limit of time for each call.

A worker is a process of its own session, started by name and not by multiprocessing, which would import the main
script in it. A call that takes too long ends with the worker and all that it has started; the next call gets a new one.
Each worker takes its calls in order, so that a function that keeps a state sees the same calls in every run.
"""

import contextlib
import functools
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import Any

from posttrain.errors import UserError
from posttrain.rollout.rewards import worker
from posttrain.rollout.rewards.attempts import CallLostError, score_batch, score_rows
from posttrain.rollout.rewards.batch import Scores
from posttrain.rollout.rewards.calls import FunctionName, Reply
from posttrain.rollout.rewards.worker import Call, CallRows, Load, Request

# Importing a function may bring torch with it, from a slow disk.
LOAD_SECONDS = 180.0
START = f"from {worker.__name__} import main; main()"


class Worker:
    """One process, started at once."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        self._process = subprocess.Popen(
            # -P: a file of the current folder must not stand in for a module of Python's own.
            [sys.executable, "-P", "-c", START, str(theirs.fileno()), str(lifeline)],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), lifeline),
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        theirs.close()
        os.close(lifeline)
        self._connection = Connection(ours.detach())

    def send(self, request: Request) -> None:
        """Hand a request over.

        Raises:
            CallLostError: the process has ended.
        """
        try:
            self._connection.send(request)
        except OSError:
            raise CallLostError(self._ending()) from None

    def receive(self, seconds: float) -> Any:
        """The next answer.

        Raises:
            CallLostError: it did not come in time, or the process has ended.
        """
        try:
            if self._connection.poll(seconds):
                return self._connection.recv()
        except (EOFError, OSError):
            raise CallLostError(self._ending()) from None
        raise CallLostError(f"it took longer than {seconds:g} s")

    def kill(self) -> None:
        """End the process and what it has started; whoever waits for its answer gets a CallLostError."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """End it, and close this side's ends. Nobody may be waiting."""
        self.kill()
        self._connection.close()
        os.close(self._lifeline)

    def _ending(self) -> str:
        code = self._process.wait(timeout=10)
        return f"its process ended with {'signal' if code < 0 else 'exit code'} {abs(code)}"


class Lane:
    """A queue of calls and the worker that takes them, one after the other."""

    def __init__(self, seconds: float) -> None:
        """
        Args:
            seconds: the limit of one call.
        """
        self._seconds = seconds
        self._worker: Worker | None = None
        self._loaded: set[FunctionName] = set()
        self._closed = False
        self._lock = threading.Lock()
        self._calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="posttrain-rewards", daemon=True)
        self._thread.start()

    def submit(self, name: FunctionName, arguments: dict[str, Any], row_by_row: bool) -> Callable[[], Scores]:
        """Score rows as soon as those before them are done.

        Args:
            name: of the function.
            arguments: lists with an entry a row.
            row_by_row: call it with one row at a time, each with its own limit of time.

        Returns:
            What waits for the scores.
        """
        future: Future[Scores] = Future()
        score = score_rows if row_by_row else score_batch
        self._calls.put((future, functools.partial(score, self._ask, name, arguments)))
        return future.result

    def load(self, name: FunctionName) -> list[str]:
        """Import a function in the worker; returns the columns that it needs.

        Raises:
            UserError: it cannot be imported.
        """
        future: Future[list[str]] = Future()
        self._calls.put((future, functools.partial(self._load, name)))
        return future.result()

    def prepare(self, name: FunctionName) -> None:
        """Begin to start the worker and to import a function there, so that the first call need not wait for that.
        What goes wrong is told by the call."""
        self._calls.put((Future(), functools.partial(self._load, name)))

    def close(self) -> None:
        """End the worker, and whatever it is at."""
        with self._lock:
            self._closed = True
            if self._worker is not None:
                self._worker.kill()
        self._calls.put(None)
        self._thread.join()  # each call still in the queue fails at once
        self._drop()

    def _serve(self) -> None:
        while (item := self._calls.get()) is not None:
            future, action = item
            try:
                future.set_result(action())
            except BaseException as error:
                future.set_exception(error)

    def _load(self, name: FunctionName) -> list[str]:
        try:
            running = self._running()
            running.send(Load(name))
            answer = running.receive(LOAD_SECONDS)
        except CallLostError as lost:
            self._drop()
            raise UserError(f"reward_funcs: {name.text} cannot be imported: {lost}") from None
        if isinstance(answer, Reply):
            raise UserError(answer.mistake, "rewards.md#your-own")
        self._loaded.add(name)
        return list(answer)

    def _running(self) -> Worker:
        with self._lock:
            if self._closed:
                raise UserError("the rewards are closed")
            if self._worker is None:
                self._worker = Worker()
            return self._worker

    def _drop(self) -> None:
        with self._lock:
            if self._worker is not None:
                self._worker.close()
            self._worker = None
            self._loaded.clear()

    def _ask(self, request: Call | CallRows) -> Iterator[Reply]:
        """The answers to a request: one, or one a row; ends with CallLostError where one does not come."""
        if request.name not in self._loaded:
            self._load(request.name)
        try:
            running = self._running()
            running.send(request)
            for _ in request.arguments["completions"] if isinstance(request, CallRows) else [None]:
                yield running.receive(self._seconds)
        except CallLostError:
            self._drop()
            raise
