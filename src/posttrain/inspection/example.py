"""A row as the model sees it: its tokens as text, special ones visible, the ones that are trained on marked.

In colour, these are green; without it they stand in [[…]], line by line, so that a shortened example can be read.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple
from unicodedata import east_asian_width

from posttrain.inspection.display import WIDTH, Ink
from posttrain.terminal import visible

OPEN, CLOSE, LINE_END = "[[", "]]", "⏎"
_LABEL = 12  # columns of the label in front of a segment
_FIRST_LINES, _LAST_LINES = 14, 6
_ATOMS = re.compile(r"\n| +|[^\s]+|\s")


class Look(NamedTuple):
    """What a token is."""

    trained: bool
    special: bool


@dataclass(frozen=True)
class Segment:
    """A stretch of an example.

    Args:
        label: what it is.
        ids: its tokens.
        mask: 1 = trained on.
    """

    label: str
    ids: Sequence[int]
    mask: Sequence[int]


def segments_of(kind: str, columns: dict[str, list[Any]], index: int) -> list[Segment]:
    """The stretches of a tokenised row.

    Args:
        kind: "sft", "preference", "reward" or "prompts".
        columns: as the tokenise functions name them.
        index: of the row.
    """

    def ids(name: str) -> list[int]:
        return [int(token) for token in columns[name][index]]

    def mask(name: str) -> list[int]:
        return [int(trained) for trained in columns[name][index]]

    if kind == "sft":
        return [Segment("row", ids("input_ids"), [0, *mask("loss_mask")[1:]])]
    prompt = Segment("prompt", ids("prompt_ids"), [0] * len(ids("prompt_ids")))
    if kind == "prompts":
        return [prompt]
    sides = []
    for name in ("chosen", "rejected"):
        own = ids(f"{name}_ids")
        # A reward model's score is read at the last token; nothing else of it is trained on directly.
        sides.append(Segment(name, own, mask(f"{name}_mask") if kind != "reward" else [0] * (len(own) - 1) + [1]))
    return [prompt, *sides]


def show_segment(tokenizer: Any, segment: Segment, ink: Ink) -> list[str]:
    """A stretch as lines with its label in front; a long one without its middle."""
    width = WIDTH - _LABEL - 1
    lines = [_line(atoms, ink) for atoms in _wrapped(_atoms(tokenizer, segment), width, ink)]
    if len(lines) > _FIRST_LINES + _LAST_LINES + 1:
        hidden = len(lines) - _FIRST_LINES - _LAST_LINES
        lines[_FIRST_LINES:-_LAST_LINES] = [ink.dim(f"… {hidden:,} more lines …")]
    if not lines:
        lines = [ink.dim("(nothing)")]
    labels = [ink.dim(f"  {segment.label:<{_LABEL - 2}}"), *[" " * _LABEL] * (len(lines) - 1)]
    return [label + line for label, line in zip(labels, lines, strict=True)]


def _atoms(tokenizer: Any, segment: Segment) -> Iterator[tuple[str, Look]]:
    """Words, spaces and line ends with their looks. Tokens that look alike are decoded together: a letter may be
    several tokens."""
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    looks = [Look(bool(trained), token in special) for token, trained in zip(segment.ids, segment.mask, strict=True)]
    stop = 0
    for look, group in groupby(looks):
        start, stop = stop, stop + len(list(group))
        for atom in _ATOMS.findall(_decoded(tokenizer, segment.ids, start, stop)):
            yield LINE_END if atom == "\n" else visible(atom), look


def _decoded(tokenizer: Any, ids: Sequence[int], start: int, stop: int) -> str:
    """The text of some of a sequence's tokens. By themselves they may lose the space that they begin with."""

    def decode(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    before, through = decode(ids[:start]), decode(ids[:stop])
    return through[len(before) :] if through.startswith(before) else decode(ids[start:stop])


Atoms = list[tuple[str, Look]]


def _wrapped(atoms: Iterable[tuple[str, Look]], width: int, ink: Ink) -> Iterator[Atoms]:
    """Atoms in lines that are at most `width` columns wide, their marks included, and a space that ends them not."""
    line: Atoms = []
    for text, look in _short_enough(atoms, width - len(OPEN + CLOSE)):
        if line and text != " " and _columns([*line, (text, look)], ink) > width:
            yield line
            line = []
        line.append((text, look))
        if text == LINE_END:
            yield line
            line = []
    if line:
        yield line


def _short_enough(atoms: Iterable[tuple[str, Look]], width: int) -> Iterator[tuple[str, Look]]:
    for text, look in atoms:
        step = width if _width(text) == len(text) else width // 2
        for start in range(0, len(text), step):
            yield text[start : start + step], look


def _columns(line: Atoms, ink: Ink) -> int:
    runs = sum(trained for trained, _ in groupby(line, key=lambda atom: atom[1].trained))
    return sum(_width(text) for text, _ in line) + (0 if ink.colored else runs * len(OPEN + CLOSE))


def _width(text: str) -> int:
    """Columns of a terminal: Chinese, Japanese and Korean characters take two."""
    return len(text) if text.isascii() else sum(1 + (east_asian_width(character) in "WF") for character in text)


def _line(line: Atoms, ink: Ink) -> str:
    parts = []
    for look, group in groupby(line, key=lambda atom: atom[1] if ink.colored else Look(atom[1].trained, False)):
        text = "".join(text for text, _ in group)
        if not ink.colored:
            parts.append(f"{OPEN}{text}{CLOSE}" if look.trained else text)
        elif look.trained:
            parts.append(ink.trained(text, look.special))
        else:
            parts.append(ink.special(text) if look.special else text)
    return "".join(parts)
