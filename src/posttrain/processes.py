"""`accelerate launch` as a module that ends as its processes do: with their exit code, and without the launcher's own
account of it, under which what a process had said would be lost.

Signals are held back in this process, and in those that it starts until they are ready for them. A thread takes them
here and passes them on, where torch's agent would end all processes after 30 seconds.
"""

import importlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from posttrain.errors import LOST, OUT_OF_MEMORY_PAGE, UserError, report, report_mistakes
from posttrain.heartbeat import FAILURES_PAGE, Heartbeat
from posttrain.loading import collector_at_rest
from posttrain.meeting import Meeting
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
_WAY_ON = (
    "Nothing is left running on this machine, and the same command on all of them goes on from the last checkpoint, if "
    "there is one"
)


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
            number, sender = self._next()
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
            elif answer is Answer.FIRST and sender not in children():  # those tell that all have agreed to end
                threading.Thread(target=self._tell, args=(number,), daemon=True).start()

    def _next(self) -> tuple[int, int | None]:
        """The next signal, and the process that has sent it where the system tells."""
        if sys.platform == "darwin":
            return signal.sigwait(self._numbers), None
        about = signal.sigwaitinfo(self._numbers)
        return about.si_signo, about.si_pid

    def give_up(self, cause: str, code: int) -> None:
        """Ends all processes of this machine, since those of another one are gone; does not return.

        Args:
            cause: in words.
            code: to exit with.
        """
        self._is_ending = True
        kill(children(recursive=True))
        report(cause if code == 2 else f"{cause}. {_WAY_ON}", [], FAILURES_PAGE)
        os._exit(code)

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
    # These take seconds, in which a signal is not to be missed. The store of a machine that is gone would have torch
    # write pages about it.
    is_quiet = "TORCH_CPP_LOG_LEVEL" not in os.environ
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with collector_at_rest():
        importlib.import_module("torch.distributed.run")  # its loggers take their levels when they are made
        from accelerate.commands.launch import launch_command_parser

    if is_quiet:
        del os.environ["TORCH_CPP_LOG_LEVEL"]  # its processes may say what they like
    for name in ("agent.server.api", "multiprocessing.api"):
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    arguments = launch_command_parser().parse_args()
    heartbeat = None
    if (arguments.num_machines or 1) > 1:
        heartbeat = Heartbeat(_meeting(arguments), relay.give_up, lambda: relay.asked.number is not None)
        heartbeat.start()
    code = _launch(arguments, relay, heartbeat)
    if heartbeat is not None:
        heartbeat.tell_end(code)
    return code


def _meeting(arguments: Any) -> Meeting:
    """The machines, from options that launch.py has given all of."""
    place = arguments.main_process_ip, arguments.main_process_port, arguments.machine_rank
    return Meeting(*place, arguments.num_machines, arguments.num_processes)


def _launch(arguments: Any, relay: _Relay, heartbeat: Heartbeat | None) -> int:
    """Runs `accelerate launch`.

    Args:
        arguments: its options.
        relay: takes signals meanwhile.
        heartbeat: of several machines.

    Raises:
        UserError: the machines do not find together.
    """
    from accelerate.commands.launch import launch_command
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    ended = _end_the_others(relay)
    try:
        launch_command(arguments)
    except ChildFailedError as error:
        relay.leave_the_last_word()
        codes = {rank: fail.exitcode for rank, fail in error.failures.items() if fail.pid not in ended}
        if heartbeat is not None and codes.keys() and set(codes.values()) <= {LOST, -signal.SIGABRT}:  # NCCL aborts
            cause = heartbeat.cause_of_failure()
            if cause is not None:
                report(f"{cause}. {_WAY_ON}", [], FAILURES_PAGE)
                return 1
        return code_of_all(codes)
    except subprocess.CalledProcessError as error:  # of a single process, for which there is no agent
        relay.leave_the_last_word()
        return _code_of(error.returncode, "the process that trains")
    except (DistError, ConnectionError, TimeoutError) as error:
        relay.leave_the_last_word()
        if heartbeat is None:
            raise
        reason = str(error).partition("\n")[0]
        raise UserError(f"the machines do not find together: {reason}", FAILURES_PAGE) from error
    return 0


def code_of_all(codes: Mapping[int, int]) -> int:
    """The exit code that stands for the ends of several processes.

    Args:
        codes: by rank, of those that nobody here has ended. One that was killed counts first: others may have failed
            since, for want of it; one that has lost another counts last.
    """
    if not codes:
        return 128 + signal.SIGKILL
    rank = min(codes, key=lambda rank: (codes[rank] != -signal.SIGKILL, codes[rank] == LOST))
    return _code_of(codes[rank], f"process {rank}")


def _code_of(code: int, process: str) -> int:
    """The exit code that stands for the end of a process, which has told why unless a signal ended it.

    Args:
        code: -N where signal N did.
        process: in words.
    """
    if code >= 0:
        return 1 if code == LOST else code
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
    sys.exit(report_mistakes(main))
