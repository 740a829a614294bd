"""`python -m posttrain.processes …` many times, forked from a process that has imported what a launcher does.

As a program this is a server: a JSON line on its standard input is a command, one on its standard output its end.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from forks import Program

_IMPORTED = ("torch.distributed.run", "accelerate.commands.launch", "posttrain.processes")


class Ended(NamedTuple):
    """A launcher that has ended.

    Args:
        code: of its exit.
        said: on stderr, by itself and its processes.
    """

    code: int
    said: str


class Launchers(Program):
    """The server."""

    def __init__(self) -> None:
        super().__init__(__file__)

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> Ended:
        """Runs a command of `posttrain.launch.launcher_command` to its end.

        Args:
            command: the words.
            environment: variables beside ours.
        """
        assert list(command[1:3]) == ["-m", "posttrain.processes"]
        return Ended(**self.ask(words=command[2:], environment=dict(environment)))


def _serve() -> None:
    for name in _IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        with tempfile.TemporaryFile() as said:
            child = os.fork()
            if child == 0:
                _become(said.fileno(), **json.loads(line))
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            said.seek(0)
            text = said.read().decode(errors="replace")
        print(json.dumps({"code": code, "said": text}), flush=True)


def _become(said: int, words: list[str], environment: dict[str, str]) -> None:
    """Turns a fork into a launcher; does not return."""
    from posttrain import processes
    from posttrain.errors import report_mistakes

    code = 70
    signal.alarm(60)  # a launcher that hangs fails its test
    try:
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(0, 1)
        os.dup2(said, 2)
        os.environ.update(environment)
        sys.argv = words
        code = report_mistakes(processes.main)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
