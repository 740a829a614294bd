"""Grading an answer by the number that it ends in, in GSM8K's form: a last line `#### 1,234`."""

import re
from decimal import Decimal

MARK = "####"

# A sign before or after the dollar; digits in groups of three or without commas; a decimal part; a full stop.
_NUMBER = re.compile(
    r"(?P<sign>[-+]?)\$?(?P<inner>[-+]?)(?P<digits>\d{1,3}(?:,\d{3})+|\d+|(?=\.\d))(?P<part>\.\d+)?\.?"
)


def read_number(text: str) -> Decimal | None:
    """Read a number such as `-3`, `1,234`, `$2.50` or `.5`.

    Args:
        text: the number and nothing else but blanks, and perhaps a full stop, around it.

    Returns:
        its value, or None where the text is no number.
    """
    match = _NUMBER.fullmatch(text.strip())
    if match is None or (match["sign"] and match["inner"]) or not text.isascii():
        return None
    digits = match["digits"].replace(",", "") or "0"
    return Decimal((match["sign"] or match["inner"]) + digits + (match["part"] or ""))


def final_answer(text: str) -> Decimal | None:
    """Read what stands behind the last `####` of a text, up to the end of its line.

    Returns:
        the number, or None where there is no mark or no number behind it.
    """
    _, mark, rest = text.rpartition(MARK)
    return read_number(rest.partition("\n")[0]) if mark else None


def is_correct(text: str, reference: str) -> bool:
    """Whether an answer ends in the right number.

    Args:
        text: the answer, graded by its `####` line alone; without one it is wrong.
        reference: the right number, or a worked solution that ends in `#### number`.

    Raises:
        ValueError: the reference holds no number.
    """
    right = final_answer(reference) if MARK in reference else read_number(reference)
    if right is None:
        raise ValueError(f"the reference {reference!r} is neither a number nor a solution that ends in `#### number`")
    return final_answer(text) == right
