"""How a program ends: a mistake of a user with a message and exit code 2, memory that ran out with advice and 1."""

import os
import signal
import sys
from collections.abc import Callable, Iterable

TRACEBACK = "POSTTRAIN_TRACEBACK"  # set to anything: every error shows where in the code it came from
OUT_OF_MEMORY_PAGE = "troubleshooting.md#out-of-memory"
# What torch says where its own OutOfMemoryError does not stand for it; the last one is accelerate's, of a batch size
# that was halved down to nothing.
_OUT_OF_MEMORY_TEXTS = (
    "DefaultCPUAllocator: ",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
    "No executable batch size found",
)


class UserError(ValueError):
    """Something the user gave is wrong. The message says what, where, and the way out.

    Args:
        message: The message.
        page: Where docs/ tells more, such as "troubleshooting.md#hub".
    """

    def __init__(self, message: str, page: str | None = None) -> None:
        super().__init__(message)
        self.page = page


def report_mistakes(run: Callable[[], int]) -> int:
    """Call `run` and return its exit code.

    A UserError becomes a message on stderr and exit code 2, memory that ran out a message with the notes of the
    exception and exit code 1, Ctrl-C exit code 130. With POSTTRAIN_TRACEBACK in the environment all errors pass
    through, with their traceback.
    """
    try:
        return run()
    except KeyboardInterrupt:
        print("posttrain: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        if isinstance(error, UserError):
            _report(str(error), [], error.page)
            return 2
        if is_out_of_memory(error):
            notes = [*getattr(error, "__notes__", []), f"{TRACEBACK}=1 in front of the command shows where it happened"]
            _report(f"out of memory: {_first_sentence(error)}", notes, OUT_OF_MEMORY_PAGE)
            return 1
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU or this machine had no memory left, in whichever of the words there are."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch is not imported for this
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY_TEXTS)


def _report(message: str, notes: Iterable[str], page: str | None) -> None:
    print(f"posttrain: error: {message}", file=sys.stderr)
    for note in notes:
        print(note, file=sys.stderr)
    if page is not None:
        print(f"More: docs/{page}", file=sys.stderr)


def _first_sentence(error: BaseException) -> str:
    """What was asked for; torch goes on with a paragraph about its allocator."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text.partition(". GPU ")[0].partition(" Of the allocated memory")[0]
