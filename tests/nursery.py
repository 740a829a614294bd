"""Programs of the tests in forks of pytest's own process, as it was when all tests were collected: what they import is
there already, and nothing that a test has done is. `start` is for Python what subprocess.Popen would be."""

from __future__ import annotations

import faulthandler
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

# The process that forks, and where it is asked.
_process = 0
_place: socket.socket | None = None


class Started:
    """A program that runs.

    Args:
        code: reads the exit code, once there is one.
    """

    def __init__(self, code: IO[str]) -> None:
        self._code = code

    def wait(self) -> int:
        """Its exit code, which is waited for."""
        with self._code:
            return int(self._code.read())


def open_nursery() -> None:
    """Forks the process that forks others. What has threads or state by now, they begin with."""
    global _process, _place
    if sys.platform != "linux":  # a fork without a new program is not to be trusted with the libraries of others
        return
    ours, theirs = socket.socketpair()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: execnet's, which only reads
        _process = os.fork()
    if _process == 0:
        with suppress(BaseException):
            ours.close()
            _serve(theirs)
        os._exit(0)
    theirs.close()
    _place = ours


def close_nursery() -> None:
    """Ends the process that forks; what its programs took is then counted as ours."""
    global _place
    if _place is not None:
        _place.close()
        os.waitpid(_process, 0)
        _place = None


def start(
    words: Sequence[str], variables: Mapping[str, str], stdin: int, stdout: int, stderr: int = 2
) -> Started | subprocess.Popen[str]:
    """Runs `python WORDS…`.

    Args:
        words: a script and its arguments; options of Python, of which only `-W error` is known, before them.
        variables: its environment.
        stdin, stdout, stderr: files of ours, by their numbers.
    """
    if _place is None:
        words = [sys.executable, *words]
        return subprocess.Popen(words, env=variables, stdin=stdin, stdout=stdout, stderr=stderr, text=True)
    reading, writing = os.pipe()
    about = json.dumps({"words": list(words), "variables": dict(variables), "folder": os.getcwd()}).encode()
    _place.sendall(len(about).to_bytes(4, "big"))
    socket.send_fds(_place, [about[:1]], [stdin, stdout, stderr, writing])
    _place.sendall(about[1:])
    os.close(writing)
    return Started(os.fdopen(reading, encoding="ascii"))


# -- in the process that forks


def _serve(place: socket.socket) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends when pytest does
    faulthandler.disable()  # pytest's, which writes to a file that is closed now
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in (0, 1, 2, place.fileno()):
            with suppress(OSError):
                os.close(int(name))
    while size := place.recv(4, socket.MSG_WAITALL):
        first, files, _, _ = socket.recv_fds(place, 1, 4)
        about = json.loads(first + place.recv(int.from_bytes(size, "big") - 1, socket.MSG_WAITALL))
        if os.fork() == 0:
            place.close()
            _keep(about, files)
        for file in files:
            os.close(file)
        _see_ended()
    deadline = time.monotonic() + 2
    while _see_ended() and time.monotonic() < deadline:
        time.sleep(0.01)


def _see_ended() -> bool:
    """Takes note of programs that have ended; whether there are others."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return True
    return False


def _keep(about: dict[str, Any], files: Sequence[int]) -> None:
    """Waits for a program in a fork, and tells its exit code."""
    *standard, code = files
    child = os.fork()
    if child == 0:
        os.close(code)
        _become(standard=standard, **about)
    for file in standard:
        os.close(file)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.write(code, str(status).encode())
    os._exit(0)


def _become(words: list[str], variables: dict[str, str], folder: str, standard: Sequence[int]) -> None:
    """Turns a fork into a program; does not return."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, file in enumerate(standard):
            os.dup2(file, number)
        for file in standard:
            os.close(file)
        for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
        os.environ.clear()
        os.environ.update(variables)
        os.chdir(folder)
        if words[:2] == ["-W", "error"]:
            warnings.simplefilter("error")
            words = words[2:]
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
