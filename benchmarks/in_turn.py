"""Runs that take their steps in turn: each is a process of its own that waits while the others take theirs, so that
whatever else a machine does meets all of them alike. In the runs, turn_taking.py waits. None outlives the one that has
started it.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from posttrain.stop import end_with_parent

ROOT = Path(__file__).resolve().parent.parent


class RunEnded(Exception):
    """A run ended although more steps were to be asked for; the message is the end of what it has written."""


class Run:
    """A run that waits for its turn. Entered as a context, it is started; left, it is ended without saving anything.

    Args:
        command: that starts it, given the address of the socket and a folder for what it writes.
        environment: variables on top of those of this process.

    Attributes:
        started: what each of its processes said when training was about to begin.
    """

    started: list[dict[str, Any]]

    def __init__(self, command: Callable[[str, Path], Sequence[str]], environment: Mapping[str, str]) -> None:
        self._command, self._environment = command, environment

    def __enter__(self) -> Run:
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="posttrain-run-")))
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            address = str(scratch / "turns")
            listener.bind(address)
            listener.listen()
            listener.settimeout(0.2)
            self._log = stack.enter_context(open(scratch / "log", "w+", encoding="utf-8"))
            self._process = subprocess.Popen(
                self._command(address, scratch),
                env=os.environ | {"TOKENIZERS_PARALLELISM": "false"} | self._environment,
                cwd=scratch,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                preexec_fn=functools.partial(end_with_parent, signal.SIGKILL),  # it may be in the middle of a step
            )
            stack.callback(self._end)
            while True:
                try:
                    connection = stack.enter_context(listener.accept()[0])
                    break
                except TimeoutError:
                    if self._process.poll() is not None:
                        raise self._ended() from None
            self._channel = stack.enter_context(connection.makefile("rw", encoding="utf-8"))
            self.started = self._heard()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *details: object) -> None:
        self._stack.close()

    def take(self, steps: int) -> list[dict[str, Any]]:
        """Takes steps, and returns what each process says of them.

        Args:
            steps: to take; -1: one, under torch's profiler.

        Raises:
            RunEnded: it has ended instead.
        """
        try:
            self._channel.write(f"{steps}\n")
            self._channel.flush()
        except BrokenPipeError:
            raise self._ended() from None
        return self._heard()

    def _heard(self) -> list[dict[str, Any]]:
        line = self._channel.readline()
        if not line:
            raise self._ended()
        reports: list[dict[str, Any]] = json.loads(line)
        return reports

    def _ended(self) -> RunEnded:
        self._log.seek(0)
        return RunEnded(self._log.read()[-4000:])

    def _end(self) -> None:
        self._process.kill()  # its launched processes end with it
        self._process.wait()


def own_environment(threads: int) -> dict[str, str]:
    """Variables of a run of this checkout's posttrain.

    Args:
        threads: that one of its processes computes on.
    """
    paths = [str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(paths)}
