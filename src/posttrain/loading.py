"""While libraries load, nobody looks for garbage.

They make hundreds of thousands of objects, and all of these stay. Python's collector would go through them again and
again as they grow in number, which takes a seventh of the seconds from start to first step; and later once more, unless
it is told that they stay.
"""

import contextlib
import gc
import sys
from collections.abc import Iterator

_is_resting = False


@contextlib.contextmanager
def collector_at_rest() -> Iterator[None]:
    """For the time in which libraries load, or until `libraries_loaded` is called. Where they are here already, and
    where somebody else has switched the collector off, this does nothing."""
    global _is_resting
    if "transformers" not in sys.modules and gc.isenabled():
        gc.disable()
        _is_resting = True
    try:
        yield
    finally:
        libraries_loaded()


def libraries_loaded() -> None:
    """The collector goes on, and leaves alone what is here by now."""
    global _is_resting
    if _is_resting:
        _is_resting = False
        gc.freeze()
        gc.enable()
