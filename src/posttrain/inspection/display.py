"""Lines for a terminal of 100 columns: colours where they are wanted, wrapped text, bars."""

import os
import shlex
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from posttrain.terminal import visible

WIDTH = 100
_BAR = 40
_BINS = 8


@dataclass(frozen=True)
class Ink:
    """Colours, or none.

    Args:
        colored: ANSI sequences may be written.
    """

    colored: bool

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colored and text else text

    def bold(self, text: str) -> str:
        """A title."""
        return self._paint(text, "1")

    def dim(self, text: str) -> str:
        """What matters less."""
        return self._paint(text, "2")

    def good(self, text: str) -> str:
        """Fine."""
        return self._paint(text, "32")

    def warn(self, text: str) -> str:
        """To be looked at."""
        return self._paint(text, "33")

    def bad(self, text: str) -> str:
        """In the way."""
        return self._paint(text, "31")

    def trained(self, text: str, special: bool) -> str:
        """A token that is trained on."""
        return self._paint(text, "1;32" if special else "32")

    def special(self, text: str) -> str:
        """A special token that is read."""
        return self._paint(text, "36")


def ink_for(color: str) -> Ink:
    """Colours for stdout.

    Args:
        color: "always", "never", or "auto": on a terminal, unless NO_COLOR is set (https://no-color.org).
    """
    on_terminal = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return Ink(color == "always" or (color == "auto" and on_terminal))


def wrapped(text: str, width: int) -> list[str]:
    """Text in lines; a word that is longer than a line stays whole, for it is a path or a flag."""
    return [
        line
        for paragraph in text.splitlines()
        for line in textwrap.wrap(paragraph, width, break_long_words=False, break_on_hyphens=False)
    ]


def item(mark: str, text: str, indent: int = 2) -> list[str]:
    """A line that begins with a mark one column wide, wrapped; the lines after it stand under its text, in which
    nothing acts on the terminal."""
    lines = wrapped(visible(text, kept="\n\t"), WIDTH - indent - 2)
    return [" " * indent + (f"{mark} " if not number else "  ") + line for number, line in enumerate(lines)]


def table(rows: Sequence[Sequence[str]], indent: int = 2) -> list[str]:
    """Columns side by side, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        " " * indent
        + "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def histogram(lengths: npt.NDArray[np.int64], limit: int | None, ink: Ink) -> list[str]:
    """How many lengths there are up to each power of two, as bars; those above the limit are marked."""
    edges = 2 ** np.ceil(np.log2(np.maximum(lengths, 1))).astype(np.int64)
    bins = [int(edge) for edge in 2 ** np.arange(int(np.log2(edges.min())), int(np.log2(edges.max())) + 1)][-_BINS:]
    edges = np.maximum(edges, bins[0])
    counts = [int((edges == edge).sum()) for edge in bins]
    first = (
        f"up to {bins[0]:,}" if lengths.min() <= bins[0] // 2 or bins[0] < 4 else f"{bins[0] // 2 + 1:,} to {bins[0]:,}"
    )
    names = [first, *(f"{edge // 2 + 1:,} to {edge:,}" for edge in bins[1:])]
    lines = []
    for name, edge, count in zip(names, bins, counts, strict=True):
        bar = "█" * max(1, round(_BAR * count / max(counts))) if count else ""
        above = limit is not None and edge // 2 >= limit
        painted = (ink.warn(bar) if above else ink.good(bar)) + " " * (_BAR - len(bar))
        lines.append(f"  {name:>{max(map(len, names))}}  {painted}  {count:>{len(f'{max(counts):,}')},}")
    return lines


def command(words: Sequence[str]) -> list[str]:
    """A command to copy into a shell, over several lines where it is long.

    Args:
        words: its words, `posttrain` and the method first.
    """
    groups: list[str] = [" ".join(words[:2])]
    for word in words[2:]:
        if word.startswith("--"):
            groups.append(word)
        else:
            groups[-1] += f" {shlex.quote(word)}"
    lines = ["  " + groups[0]]
    for group in groups[1:]:
        if len(lines[-1]) + len(group) + 1 <= WIDTH - 2:
            lines[-1] += f" {group}"
        else:
            lines[-1] += " \\"
            lines.append("      " + group)
    return lines
