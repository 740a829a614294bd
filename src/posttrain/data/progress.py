"""Progress bars of what may take long, in the process that speaks to the user."""

import os
from typing import Any

_SECONDS_BEFORE_BAR = 3.0


def is_first_process() -> bool:
    """Whether this is the process of its machine that speaks to the user."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def bar(what: str, total: int | None, unit: str = " rows") -> Any:
    """A bar of tqdm, which shows itself after some seconds.

    Args:
        what: is going on.
        total: of units; None where nobody knows.
        unit: what is counted; "B" for bytes, which are shown in larger units.
    """
    from tqdm import tqdm

    return tqdm(
        total=total,
        desc=what,
        unit=unit,
        unit_scale=unit == "B",
        unit_divisor=1024 if unit == "B" else 1000,
        delay=_SECONDS_BEFORE_BAR,
        disable=None if is_first_process() else True,
    )
