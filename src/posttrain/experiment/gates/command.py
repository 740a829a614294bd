# ruff: noqa: RUF009 (flag() returns a dataclass field)
"""`posttrain check`: the checks of the stage `check_data` on any data set."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.config.fields import convert, flag, flags_of, suggestion, takes_list
from posttrain.config.flag_words import default_of, written
from posttrain.config.json_text import show
from posttrain.errors import UserError
from posttrain.experiment.gates.data_settings import DataLimits
from posttrain.experiment.gates.limits import check_thresholds, report, stop_on_failure, write_offenders

if TYPE_CHECKING:
    from posttrain.experiment.gates.data_checks import Part

USAGE = "posttrain check DATA ... [--test DATA ...] [--flag value ...]"


@dataclass(kw_only=True)
class CheckFlags(DataLimits):
    """The flags of `posttrain check`."""

    test: list[str] = flag([], "Further data that must be new to training: files, folders with a split test, hub ids.")
    offenders: str | None = flag(None, "File to write every row that is found to, as JSON lines.")


def run(words: Sequence[str]) -> int:
    """Check data sets, print a line a check.

    Args:
        words: behind `posttrain check`.

    Returns:
        The exit code 0.

    Raises:
        UserError: flags or data cannot be used.
        RunFailed: a check failed.
    """
    if "-h" in words or "--help" in words:
        print(help_text())
        return 0
    names, flags = parse(words)
    from posttrain.experiment.gates.data_checks import check_data

    train, held_out = read(names, flags.test)
    checks, _ = check_data(train, held_out, flags)
    if flags.offenders is not None:
        write_offenders(checks, Path(flags.offenders))
    print(report(checks, ""))
    stop_on_failure(checks, "the data", "", flags.offenders or "", "gates.md#data")
    return 0


def parse(words: Sequence[str]) -> tuple[list[str], CheckFlags]:
    """The data sets that stand in front, and the flags behind them.

    Raises:
        UserError: a flag is unknown or has a wrong value; no data set is named.
    """
    fields, names = flags_of(CheckFlags), list[str]()
    given: dict[str, list[str]] = {}
    into = names
    for word in words:
        if word.startswith("--"):
            typed, has_value, value = word[2:].partition("=")
            name = typed.replace("-", "_")
            if name not in fields:
                raise UserError(f"--{name}: no such flag{suggestion(name, fields)}; usage: {USAGE}")
            into = given[name] = [value] if has_value else []
        else:
            into.append(word)
    if not names:
        raise UserError(f"no data: name a file, a folder or a hub id; usage: {USAGE}")
    values: dict[str, Any] = {}
    for name, typed_values in given.items():
        if not typed_values or (len(typed_values) > 1 and not takes_list(fields[name])):
            raise UserError(f"--{name} takes one value, not {len(typed_values)} ({show(' '.join(typed_values))})")
        raw = typed_values if takes_list(fields[name]) else typed_values[0]
        values[name] = convert(fields[name], raw, f"--{name}")
    flags = CheckFlags(**values)
    check_thresholds(flags, "")
    return names, flags


def read(names: Sequence[str], tests: Sequence[str]) -> tuple[list["Part"], list["Part"]]:
    """Read what is trained on and what must be new to it.

    Args:
        names: data sets; of a folder or hub id the split train, and its splits validation and test as held out.
        tests: further data that are held out.
    """
    from posttrain.data.splits import WantedSplit, open_named
    from posttrain.experiment.gates.data_checks import Part
    from posttrain.experiment.gates.texts import read_texts

    train: list[Part] = []
    held_out: list[Part] = []
    seen = set()
    for name in names:
        title = _title(name, names)
        sources = {"train": open_named(name, None, WantedSplit("train"), where=name)}
        for split in ("validation", "test"):
            # A test split that is not there is looked for as "validation", so the same rows may come twice.
            sources[split] = open_named(name, None, WantedSplit(split, "test", required=False), where=name)
        for split, source in sources.items():
            if source is not None and source.digest() not in seen:
                seen.add(source.digest())
                part = Part(f"{title}_{split}", read_texts(source, f"{title}_{split}"))
                (train if split == "train" else held_out).append(part)
    for name in tests:
        source = open_named(name, None, WantedSplit("test", flag="--test"), where="--test")
        assert source is not None  # a required split is there or an error
        title = _title(name, tests)
        held_out.append(Part(title, read_texts(source, title)))
    return train, held_out


def _title(name: str, names: Sequence[str]) -> str:
    """The last part of a path without its endings; all of it where that would be another's, too."""
    short = [Path(each).name.partition(".")[0] or each for each in names]
    own = Path(name).name.partition(".")[0] or name
    return own if short.count(own) == 1 else name


def help_text() -> str:
    """What `posttrain check --help` prints."""
    lines = [
        f"Usage: {USAGE}",
        "",
        "Looks for leaks of held-out rows into training, duplicates, empty and very long answers, and, in preference",
        "pairs, for contradictions and a bias of length. Of a folder or hub id, train is trained on, validation and",
        "test are held out. Ends with exit code 1 where a check fails. Thresholds are written as",
        "--max_contaminated warn=0.01,fail=0.05; none leaves the check out. docs/gates.md tells what is measured.",
        "",
    ]
    for name, field in flags_of(CheckFlags).items():
        default = written(default_of(field))
        shown = f" [{default}]" if default else ""
        lines += textwrap.wrap(f"  --{name:<22}{field.metadata['help']}{shown}", 110, subsequent_indent=" " * 26)
    return "\n".join(lines)
