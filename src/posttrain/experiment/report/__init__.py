"""`posttrain report`: one HTML file with what ran, what came of it, and the answers, to read offline or from a mail."""

import datetime
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from posttrain.experiment.report.options import Request, help_text, parse_request


def run(words: Sequence[str]) -> int:
    """Write the report.

    Args:
        words: behind `posttrain report`.

    Raises:
        UserError: a flag is unknown, an experiment does not exist, or the file cannot be written.
    """
    if "-h" in words or "--help" in words:
        print(help_text())
        return 0
    request = parse_request(words)
    text = make_report(request, _now())
    _write(Path(request.flags.output).expanduser(), text)
    size = len(text.encode("utf-8")) / 1e6
    print(
        f"{request.flags.output}: {size:.1f} MB, everything in one file; open it in a browser, or mail it",
        file=sys.stderr,
    )
    return 0


def make_report(request: Request, made: datetime.datetime, root: Path = Path()) -> str:
    """The page; the same bytes for the same inputs.

    Args:
        request: what is asked for.
        made: the time that the page names.
        root: the repository.

    Raises:
        UserError: an experiment does not exist.
    """
    from posttrain.experiment.report.gather import gather  # after the flags have been read: it imports plotly
    from posttrain.experiment.report.page import render

    return render(gather(request.experiments, root), request.flags.title, made)


def _now() -> datetime.datetime:
    """The time, or that of SOURCE_DATE_EPOCH (https://reproducible-builds.org/specs/source-date-epoch/)."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    seconds = float(given) if given.isdecimal() else None
    if seconds is None:
        return datetime.datetime.now(datetime.UTC)
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def _write(path: Path, text: str) -> None:
    from posttrain.disk import write_text
    from posttrain.errors import UserError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise UserError(f"--output {path}: {error.strerror or error}; name another file") from error
