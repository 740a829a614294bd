"""What libraries say, and lists of names, made short enough for a message of ours."""

from collections.abc import Sequence

_LONGEST = 300


def first_line(error: BaseException) -> str:
    """What an error says, without its explanations; its kind where it says nothing.

    Args:
        error: of a library.

    Returns:
        One line: the first, with the second where that says what the first announces; torch's about a size that does
        not match.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if lines[0].endswith(":"):
        lines[0] = " ".join(lines[:2])
    return next((line for line in lines if line.startswith("size mismatch")), lines[0])[:_LONGEST]


def some(names: Sequence[str], most: int = 6) -> str:
    """The first of several names, and how many there are more.

    Args:
        names: of files, say.
        most: are written out.
    """
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
