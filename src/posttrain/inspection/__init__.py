"""`posttrain inspect`: what a data set is good for, what a model sees of it, and a command to start with.

Rows go through the readers, parsers and tokenise functions that training uses; nothing is written or cached.
"""

import sys
from collections.abc import Sequence

from posttrain.inspection.options import Request, help_text, parse_request
from posttrain.trackers import be_quiet


def run(words: Sequence[str]) -> int:
    """Print what there is to say about a data set.

    Args:
        words: behind `posttrain inspect`.

    Returns:
        The exit code: 1 where no method (or not the one that was asked for) can train on the rows, else 0.

    Raises:
        UserError: flags, data or tokenizer cannot be used; what could be said without is printed before.
    """
    if "-h" in words or "--help" in words:
        print(help_text())
        return 0
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without the marks and bars used here
    be_quiet()
    return _print_report(parse_request(words))


def _print_report(request: Request) -> int:
    from posttrain.inspection.report import print_report  # after the flags have been read: it imports numpy

    return print_report(request)
