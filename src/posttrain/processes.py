"""`accelerate launch` as a module that ends as its processes do: with their exit code, and without the launcher's own
account of it, under which what a process had said would be lost.

Signals are held back in this process, and in those that it starts until they are ready for them. A thread takes them
here and passes them on, where torch's agent would end all processes after 30 seconds.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping

from posttrain.errors import OUT_OF_MEMORY_PAGE, report
from posttrain.stop import (
    SIGNALS,
    Answer,
    Asked,
    before_training,
    children,
    end_at_once,
    end_with_parent,
    heeded,
    kill,
    name_of,
)

_POLL = 0.5  # seconds between looks for processes that have started since a signal was passed on
_END = 0.2  # seconds that the threads of a process need to end


class _Relay:
    """Passes signals on to all processes."""

    def __init__(self) -> None:
        self.asked = Asked()
        self._is_ending = False
        self._parent = os.getppid()
        self._numbers = {*heeded(), signal.SIGTERM}
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            number = signal.sigwait(self._numbers)
            if number == signal.SIGTERM:
                # It tells of the end of the thread that has started this process, too. While another thread of the
                # command lives on, that one counts as the parent.
                time.sleep(_END)
            self._end_if_alone()
            answer = self.asked.by(number)
            if answer is Answer.AT_ONCE:
                self._is_ending = True
                end_at_once(signal.SIGINT, "stopped at once; what was saved before is kept")
            elif answer is Answer.FIRST and not children():
                end_at_once(number, before_training(number))
            elif answer is Answer.FIRST:
                threading.Thread(target=self._tell, args=(number,), daemon=True).start()

    def leave_the_last_word(self) -> None:
        """Where this process is ending at once, its children have been killed here: nobody else tells of that."""
        if self._is_ending:
            threading.Event().wait()

    def _end_if_alone(self) -> None:
        """Where the command was killed, nobody is left training."""
        if os.getppid() != self._parent:
            kill(children(recursive=True))
            os._exit(128 + signal.SIGTERM)

    def _tell(self, number: int) -> None:
        told: set[int] = set()
        while True:
            self._end_if_alone()
            new = set(children()) - told
            kill(new, number)
            told |= new
            time.sleep(_POLL)


def main() -> int:
    """Run the words of the command line as `accelerate launch` would.

    Returns:
        0, the exit code of the process that failed, or 128 + N where signal N ended it.
    """
    relay = _Relay()
    end_with_parent(signal.SIGTERM)
    # These take seconds, in which a signal is not to be missed.
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in ("agent.server.api", "multiprocessing.api"):
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    ended = _end_the_others(relay)
    try:
        launch_command(launch_command_parser().parse_args())
    except ChildFailedError as error:
        relay.leave_the_last_word()
        return code_of_all({rank: fail.exitcode for rank, fail in error.failures.items() if fail.pid not in ended})
    except subprocess.CalledProcessError as error:  # of a single process, for which there is no agent
        relay.leave_the_last_word()
        return _code_of(error.returncode, "the process that trains")
    return 0


def code_of_all(codes: Mapping[int, int]) -> int:
    """The exit code that stands for the ends of several processes.

    Args:
        codes: by rank, of those that nobody here has ended. One that was killed counts first: others may have failed
            since, for want of it.
    """
    if not codes:
        return 128 + signal.SIGKILL
    rank = min(codes, key=lambda rank: codes[rank] != -signal.SIGKILL)
    return _code_of(codes[rank], f"process {rank}")


def _code_of(code: int, process: str) -> int:
    """The exit code that stands for the end of a process, which has told why unless a signal ended it.

    Args:
        code: -N where signal N did.
        process: in words.
    """
    if code >= 0:
        return code
    reason = "; most likely this machine's memory ran out" if code == -signal.SIGKILL else ""
    report(
        f"{process} was ended by {name_of(-code)}{reason}. Nothing is left running, and the same command goes on from "
        "the last checkpoint, if there is one",
        [],
        OUT_OF_MEMORY_PAGE if code == -signal.SIGKILL else "troubleshooting.md#resume",
    )
    return 128 - code


def _end_the_others(relay: _Relay) -> set[int]:
    """Where one process has failed, the agent closes the others. They are killed, since SIGTERM would have them finish
    a step that they cannot finish; but when a signal has ended the first, the others are about to end, too.

    Returns:
        The processes that were killed, in time.
    """
    from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

    ended: set[int] = set()
    close = SubprocessHandler.close

    def patient(self: SubprocessHandler, death_sig: signal.Signals | None = None) -> None:
        if relay.asked.number is None or death_sig is signal.SIGKILL:
            ended.add(self.proc.pid)
            close(self, signal.SIGKILL)

    SubprocessHandler.close = patient  # type: ignore[method-assign]
    return ended


if __name__ == "__main__":
    sys.exit(main())
