"""The one exception for mistakes of a user, and how a program ends with one: a line on stderr, exit code 2."""

import signal
import sys
from collections.abc import Callable


class UserError(ValueError):
    """Something the user gave is wrong. The message says what, where, and the way out."""


def report_mistakes(run: Callable[[], int]) -> int:
    """Call `run` and return its exit code; a UserError becomes one line on stderr and exit code 2."""
    try:
        return run()
    except UserError as error:
        print(f"posttrain: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("posttrain: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
