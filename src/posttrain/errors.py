"""How a program ends: a mistake of a user with a message and exit code 2, memory that ran out with advice and 1."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterable

from posttrain.terminal import close_bars, say

TRACEBACK = "POSTTRAIN_TRACEBACK"  # set to anything: every error shows where in the code it came from
OUT_OF_MEMORY_PAGE = "troubleshooting.md#out-of-memory"
# What is said in other exceptions than torch's own OutOfMemoryError; the last one is accelerate's, of a batch size that
# was halved down to nothing.
_OUT_OF_MEMORY_TEXTS = (
    "out of memory",
    "DefaultCPUAllocator: ",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "No executable batch size found",
)
# The exit code of a process that has lost another one of its run, and has no mistake of its own to tell; sysexits.h has
# it for what may do better the next time.
LOST = 75
# gloo's words, and NCCL's.
_LOST_TEXTS = re.compile(
    r"Connection (closed|reset) by peer( \[[^]]*\])?|remote process exited or there was a network error"
)
_BYTES_OF_CPU = re.compile(r"DefaultCPUAllocator: .*tried to allocate (\d+) bytes")


class UserError(ValueError):
    """Something the user gave is wrong. The message says what, where, and the way out.

    Args:
        message: The message.
        page: Where docs/ tells more, such as "troubleshooting.md#hub".
    """

    def __init__(self, message: str, page: str | None = None) -> None:
        super().__init__(message)
        self.page = page


class RunFailed(RuntimeError):
    """Training cannot go on, and nothing that the user typed is wrong: a disk is full, losses are not finite. The
    message says what happened, what is kept, and how to go on; exit code 1.

    Args:
        message: The message.
        page: Where docs/ tells more.
    """

    def __init__(self, message: str, page: str | None = None) -> None:
        super().__init__(message)
        self.page = page


class EngineLost(RunFailed):
    """What generates completions for a run is gone and does not come back; all processes of the run are told.

    Args:
        message: The message.
        page: Where docs/ tells more.
        asked: the signal by which the run was asked to end, and for which nobody waits any longer.
    """

    def __init__(self, message: str, page: str | None = None, asked: int | None = None) -> None:
        super().__init__(message, page)
        self.asked = asked


class Stopped(Exception):
    """A signal asked the run to end, and it has done so in good order; exit code 128 + the signal's number.

    Args:
        number: of the signal.
        message: One line: where the run stands, and how to go on.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


def report_mistakes(run: Callable[[], int]) -> int:
    """Call `run` and return its exit code.

    A UserError becomes a message on stderr and exit code 2, a RunFailed and memory that ran out one and exit code 1,
    Stopped its line and 128 + the signal's number, Ctrl-C exit code 130, a connection to another process that broke a
    line and `LOST`. With POSTTRAIN_TRACEBACK in the environment all errors pass through, with their traceback.
    """
    try:
        return run()
    except KeyboardInterrupt:
        close_bars()
        say("posttrain: interrupted")
        return 128 + signal.SIGINT
    except Stopped as stop:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # on each machine
            close_bars()
            say(f"posttrain: {stop}")
        return 128 + stop.number
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        if isinstance(error, UserError | RunFailed):
            report(str(error), [], error.page)
            return 2 if isinstance(error, UserError) else 1
        if is_out_of_memory(error):
            notes = [*getattr(error, "__notes__", []), f"{TRACEBACK}=1 in front of the command shows where it happened"]
            report(f"out of memory: {_first_sentence(error)}", notes, OUT_OF_MEMORY_PAGE)
            return 1
        lost = _LOST_TEXTS.search(str(error)) if isinstance(error, RuntimeError) else None
        if lost is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            report(f"process {os.environ.get('RANK', '0')} has lost another one: {lost[0]}", [], None)
            return LOST
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU or this machine had no memory left, in whichever of the words there are."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch is not imported for this
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY_TEXTS)


def install(extra: str) -> str:
    """The command that installs an extra of this project.

    Args:
        extra: of pyproject.toml.
    """
    return f"pip install -e '.[{extra}]'"


def report(message: str, notes: Iterable[str], page: str | None) -> None:
    """Writes to stderr why a program ends.

    Args:
        message: the error.
        notes: lines that follow it.
        page: where docs/ tells more.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(2)  # the first process most likely says the same, and when it ends, this one is ended
    close_bars()
    say("\n".join([f"posttrain: error: {message}", *notes, *([f"More: docs/{page}"] if page else [])]))


def _first_sentence(error: BaseException) -> str:
    """What was asked for; torch goes on with a paragraph about its allocator."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    on_cpu = _BYTES_OF_CPU.search(text)
    if on_cpu:
        return f"this machine has no further {int(on_cpu[1]) / 2**20:,.0f} MiB"
    return text.partition(". GPU ")[0].partition(" Of the allocated memory")[0]
