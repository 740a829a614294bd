"""What is written to stderr: lines of their own, whatever progress bars stand there, with nothing that acts on a
terminal."""

import contextlib
import sys
from typing import Any

_SECONDS_BEFORE_BAR = 5.0
_KEPT = "\n\t\u00a0\u202f\u3000"  # of what is not printable to Python: line ends, and spaces of other scripts


def visible(text: str, kept: str = "") -> str:
    """Text with all that would move the cursor, or write in colours of its own, as Python writes it.

    Args:
        text: of whatever origin.
        kept: characters that stay as they are.
    """
    return "".join(letter if letter.isprintable() or letter in kept else repr(letter)[1:-1] for letter in text)


def say(text: str) -> None:
    """Writes a message to stderr, above the progress bars. What of it would act on a terminal stands as Python writes
    it, for messages quote data files.

    Args:
        text: one line or several, without the end of the last one.
    """
    on_terminal = sys.stderr.isatty()
    above: Any = contextlib.nullcontext()
    start = "\r\x1b[K" if on_terminal else ""  # a terminal has echoed ^C on this line
    if bars := _open_bars():
        if on_terminal:
            # Without their lock, which a process may have been forked off with.
            above = bars[0].external_write_mode(file=sys.stderr, nolock=True)
        else:
            start = "\n"  # in a file, nothing takes back what a bar has written
    with above:
        # In one piece, unlike print: the line of another thread does not begin behind this one.
        sys.stderr.write(f"{start}{visible(text, _KEPT)}\n")
        sys.stderr.flush()


def close_bars() -> None:
    """Ends the lines of all progress bars, which are not drawn again: nothing more happens."""
    for bar in _open_bars():
        bar.leave = True
        bar.close()


def _open_bars() -> list[Any]:
    """The progress bars on stderr, if anybody has imported tqdm."""
    bars = getattr(sys.modules.get("tqdm"), "tqdm", None)
    return [bar for bar in list(getattr(bars, "_instances", ())) if bar.fp == sys.stderr]


def show_long_bars_only() -> None:
    """Has transformers show its own progress bars, of weights that are loaded and written, where they take a while.
    Those of training and of downloads are others."""
    from transformers.utils import logging

    logging.set_tqdm_hook(lambda bar, words, options: bar(*words, **{"delay": _SECONDS_BEFORE_BAR, **options}))
