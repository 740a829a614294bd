"""Signals that ask a run to end: Ctrl-C, SIGTERM, a terminal that closes, and SIGUSR1, by which Slurm tells that a
job's time is nearly over.

Before training begins, a signal ends the run at once. From then on the step under way is finished and saved; who has
no time for that presses Ctrl-C again. A thread does what a signal asks for, so that it is done even while the main
thread waits in a library for a GPU, a disk or another process.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType

from posttrain import terminal

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
# A terminal, a launcher and Slurm may all pass on one and the same signal: within so many seconds it counts once.
SAME = 1.0
LAUNCHED = "POSTTRAIN_LAUNCHED"  # set in the processes that posttrain's own launcher starts
_PR_SET_PDEATHSIG = 1  # Linux: prctl(2)


def is_launched() -> bool:
    """Whether a launcher has started this process, ours or another, and so knows how many there are."""
    return LAUNCHED in os.environ or "LOCAL_RANK" in os.environ


class Phase(enum.Enum):
    """Where a run stands."""

    BEFORE = "nothing is trained yet"
    STEPS = "a step is under way"
    END = "all steps are done"


class Answer(enum.Enum):
    """What a signal means after those before it."""

    FIRST = "the run is asked to end"
    KNOWN = "it has been asked before"
    AT_ONCE = "it is to end at once"


class Asked:
    """Whether the run was asked to end, and by which signal first."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._since = 0.0

    def by(self, number: int) -> Answer:
        """Takes note of a signal; a second Ctrl-C, or one after another signal, means at once.

        Args:
            number: of the signal.
        """
        now = time.monotonic()
        if self.number is None:
            self.number, self._since = number, now
            return Answer.FIRST
        is_impatient = number == signal.SIGINT and (self.number != signal.SIGINT or now - self._since > SAME)
        return Answer.AT_ONCE if is_impatient else Answer.KNOWN


class _Watch:
    """Takes the signals of this process, for as long as a run lasts."""

    def __init__(self) -> None:
        self.asked, self.phase = Asked(), Phase.BEFORE
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._before = {number: signal.signal(number, _go_on) for number in heeded()}
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._serve, name="posttrain-signals", daemon=True)
        self._thread.start()
        # A launcher has held signals back until somebody is here to take them.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def close(self) -> None:
        """Leaves signals to whoever had them before."""
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._write)
        self._thread.join()
        os.close(self._read)

    def _serve(self) -> None:
        while numbers := os.read(self._read, 64):
            for number in numbers:
                if number in self._before:
                    self._take(number)

    def _take(self, number: int) -> None:
        answer = self.asked.by(number)
        if answer is Answer.AT_ONCE:
            end_at_once(signal.SIGINT, "stopped at once; what was saved before is kept")
        elif answer is Answer.FIRST and self.phase is Phase.BEFORE:
            end_at_once(number, before_training(number))
        elif answer is Answer.FIRST:
            say(f"{name_of(number)}: {_WHAT_FOLLOWS[self.phase]}; Ctrl-C again stops at once")


_WHAT_FOLLOWS = {Phase.STEPS: "stopping after this step", Phase.END: "all steps are done, and the model is written"}
_watch: _Watch | None = None


def _go_on(number: int, frame: FrameType | None) -> None:
    """The thread does what is to be done. A handler that does nothing, unlike an ignored signal, is not passed on to
    the programs that this one starts."""


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """For the time of a run: signals ask it to end. In other threads than the main one, which Python does not let
    handle signals, this does nothing."""
    global _watch
    if threading.current_thread() is not threading.main_thread() or _watch is not None:
        yield
        return
    _watch = _Watch()
    try:
        yield
    finally:
        closing, _watch = _watch, None
        if closing is not None:  # in a process that was forked off meanwhile it is
            closing.close()


def asked() -> int | None:
    """The signal that has asked this process to end, if one has."""
    return None if _watch is None else _watch.asked.number


def ask(number: int) -> None:
    """Another process of the run was asked to end: tells it here, where that is not known yet.

    Args:
        number: of the signal.
    """
    if _watch is not None and _watch.asked.number is None:
        _watch._take(number)


def enter(phase: Phase) -> None:
    """Says where the run stands from now on."""
    if _watch is not None:
        _watch.phase = phase


def heeded() -> list[int]:
    """The signals that are not ignored: `nohup`, and a shell's `&`, have some of them ignored."""
    return [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def name_of(number: int) -> str:
    """SIGTERM and the like."""
    return signal.Signals(number).name


def before_training(number: int) -> str:
    """The line about a run that has not begun."""
    return f"stopped by {name_of(number)} before the first step"


def say(text: str) -> None:
    """Writes a line to stderr, in the first process of a machine, above a progress bar if there is one."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        _within(0.5, lambda: _write_line(f"posttrain: {text}"))


def end_at_once(number: int, text: str) -> None:
    """Ends this process and all that it has started.

    Args:
        number: of the signal that is the reason.
        text: the line to say.
    """
    say(text)
    _within(0.5, sys.stdout.flush)
    _within(5.0, lambda: kill(children(recursive=True)))
    os._exit(128 + number)


def children(recursive: bool = False) -> list[int]:
    """The processes that this one has started and that are still there.

    Args:
        recursive: also those that they have started.
    """
    import psutil

    return [child.pid for child in psutil.Process().children(recursive=recursive)]


def kill(processes: Iterable[int], number: int = signal.SIGKILL) -> None:
    """Sends a signal to processes that may have ended by now."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def end_with_parent(number: int) -> None:
    """Where the system can tell (Linux): this process gets a signal when the one that has started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def _within(seconds: float, action: Callable[[], object]) -> None:
    """Does something that may wait for the main thread, or for whoever reads what is written; but not for long."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(seconds)


def _write_line(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # it may be that nobody reads any more
        terminal.say(line)


def _leave_to_the_parent() -> None:
    """In a process that was forked off: what a user's signals mean is the parent's business, which ends it."""
    global _watch
    if _watch is not None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _watch = None


os.register_at_fork(after_in_child=_leave_to_the_parent)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """For the time of starting another process: there, signals wait until it is ready to take them. In this one, other
    threads take them, or this one afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def outlive_signals() -> None:
    """In a process that works for the one that trains: signals that go to all processes of a job, as Slurm's do, leave
    it at work until that one ends it."""
    for number in SIGNALS:
        signal.signal(number, _go_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def shielded(start: Callable[[int], None] | None, worker: int) -> None:
    """Begins a process that loads data, and outlives signals.

    Args:
        start: what it would begin with otherwise.
        worker: its number.
    """
    outlive_signals()
    if start is not None:
        start(worker)
