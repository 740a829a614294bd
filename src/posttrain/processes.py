"""`accelerate launch` as a module that ends as its processes do: with their exit code, and without the launcher's own
account of it, under which what a process had said would be lost."""

import ctypes
import logging
import os
import signal
import subprocess
import sys

from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

_STOPPED_BY_THE_OTHERS = -15
_PR_SET_PDEATHSIG = 1  # Linux: prctl(2)


def main() -> int:
    """Run the words of the command line as `accelerate launch` would.

    Returns:
        0, the exit code of the process that failed, or 128 + N where signal N ended it.
    """
    for name in ("agent.server.api", "multiprocessing.api"):
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    _end_with_the_parent()
    try:
        launch_command(launch_command_parser().parse_args())
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        code = next((code for code in codes if code != _STOPPED_BY_THE_OTHERS), _STOPPED_BY_THE_OTHERS)
        return code if code >= 0 else 128 - code
    except subprocess.CalledProcessError as error:  # of a single process, for which there is no agent
        return error.returncode if error.returncode >= 0 else 128 - error.returncode
    except SignalException as stop:
        return 128 + int(stop.sigval)
    return 0


def _end_with_the_parent() -> None:
    """Nobody is left training when the command that started this is killed, or told to stop."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getpgrp() == os.getpid():  # started in a session of its own: all in it are of this run
        signal.signal(signal.SIGTERM, _stop_all)


def _stop_all(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)
    os.killpg(0, number)


if __name__ == "__main__":
    sys.exit(main())
