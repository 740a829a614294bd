"""What `posttrain report` is told."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.config import suggestion
from posttrain.config.fields import convert, flag, flags_of
from posttrain.errors import UserError

USAGE = "posttrain report [EXPERIMENT ...] [--output FILE] [--title TEXT]"


@dataclass(kw_only=True)
class ReportFlags:
    """The flags of `posttrain report`."""

    output: str = flag("report.html", "File to write, everything in it.")
    title: str = flag("Post-training report", "Title of the page.")


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Args:
        experiments: as typed; empty: the workspace and the newest experiments of this commit.
        flags: where the page goes, and what it is called.
    """

    experiments: list[str] = field(default_factory=list)
    flags: ReportFlags = field(default_factory=ReportFlags)


def parse_request(argv: Sequence[str]) -> Request:
    """Understand the words after `posttrain report`.

    Args:
        argv: experiments and flags, in any order.

    Raises:
        UserError: a flag is unknown, has no value, or has two.
    """
    known, names, values = flags_of(ReportFlags), [], dict[str, Any]()
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            names.append(word)
            continue
        typed, has_value, value = word[2:].partition("=")
        name = typed.replace("-", "_")
        if name not in known:
            raise UserError(f"--{typed}: no such flag{suggestion(name, known)}; usage: {USAGE}")
        if not has_value:
            if not words or words[0].startswith("--"):
                raise UserError(f"--{name} takes a value; usage: {USAGE}")
            value = words.pop(0)
        values[name] = convert(known[name], value, f"--{name}")
    return Request(list(dict.fromkeys(names)), ReportFlags(**values))


def help_text() -> str:
    """What `posttrain report --help` prints."""
    lines = [
        f"Usage: {USAGE}",
        "",
        "Writes one HTML file that needs no network: the stage graph with what ran and what was cached, metrics,",
        "training curves, distributions, the same problems answered by every model, what was dropped or cut off,",
        "and provenance. An EXPERIMENT is `workspace`, an experiment of DVC, a revision of git, or a folder with a",
        "copy of params.yaml, metrics/, plots/ and results/; differences are counted from the first.",
        "Without one: the workspace and the newest experiments of this commit.",
        "",
    ]
    for name, each in flags_of(ReportFlags).items():
        text = f"  --{name:<9}{each.metadata['help']} [{each.default}]"
        lines += textwrap.wrap(text, 100, subsequent_indent=" " * 13)
    return "\n".join(lines)
