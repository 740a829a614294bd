"""Grading an answer: by the number that it ends in, in GSM8K's form (a last line `#### 1,234`), or as mathematics.

Mathematics is compared by math-verify, which knows that 1/2, 0.5 and \\frac{1}{2} are one number.
"""

import logging
import re
import threading
from decimal import Decimal
from typing import Any

MARK = "####"
BOXED = "\\boxed"
# Seconds that math-verify may take for an expression.
MATH_TIMEOUT = 5

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


def is_same_mathematics(text: str, reference: str) -> bool | None:
    """Whether an answer says the same as the reference, mathematically.

    The answer is what the text has in `\\boxed{}`; without that the number behind its last `####`; without that the
    formula that it calls its answer ("the answer is $4$"). A bare number somewhere in the text is no answer.

    An expression that takes math-verify longer than MATH_TIMEOUT counts as one that cannot be read. It measures that by
    a signal, which only the main thread of a process gets; in other threads there is no limit.

    Args:
        text: the answer.
        reference: the right one: a formula or a number, or a solution that ends in one (`\\boxed{}`, `####`).

    Returns:
        whether they agree (an answer that cannot be read does not); None where the reference cannot be read.
    """
    quick = _are_same_integers(text, reference)
    if quick is not None:
        return quick
    from math_verify import parse, verify

    limit = MATH_TIMEOUT if threading.current_thread() is threading.main_thread() else None
    for name in ("parser", "grader"):  # they write whole answers to the screen, and warn where there is no limit
        logging.getLogger(f"math_verify.{name}").setLevel(logging.CRITICAL)
    right = parse(_reference_formula(reference), parsing_timeout=limit)
    if not right:
        return None
    number = _marked_number(text)
    if number is not None:
        return verify(right, parse(number, parsing_timeout=limit), timeout_seconds=limit)
    answer = parse(text, extraction_config=_anchored(), extraction_mode="first_match", parsing_timeout=limit)
    return verify(right, answer, timeout_seconds=limit)


def _are_same_integers(text: str, reference: str) -> bool | None:
    """Whether two whole numbers are the same, where both are known to be nothing else: most answers, and no work."""
    ours, theirs = _marked_number(text), _marked_number(reference)
    right = read_number(reference) if theirs is None else Decimal(theirs)
    if ours is None or right is None or not _is_whole(right) or not _is_whole(Decimal(ours)):
        return None
    return Decimal(ours) == right


def _is_whole(number: Decimal) -> bool:
    """Whether there is nothing behind the point; `number % 1` fails beyond the 28 digits of decimal's context."""
    return number == number.to_integral_value()


def _reference_formula(reference: str) -> str:
    number = _marked_number(reference)
    if number is not None:
        return number
    last_line = reference.strip().rpartition("\n")[2]
    return last_line.rpartition(MARK)[2] if MARK in last_line and BOXED not in reference else reference


def _marked_number(text: str) -> str | None:
    """The number behind the last `####`, as digits; None where there is none, or a box, which counts for more."""
    number = final_answer(text) if BOXED not in text else None
    return None if number is None else format(number, "f")


def _anchored() -> list[Any]:
    """Read formulas alone, those in boxes first, and take units away."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig

    units = NormalizationConfig(units=True)
    return [LatexExtractionConfig(normalization_config=units, boxed_match_priority=0, try_extract_without_anchor=False)]
