"""A measured value, the thresholds that it is held against, and what is said of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from posttrain.config.fields import suggestion
from posttrain.data.json_text import shortened
from posttrain.errors import RunFailed, UserError

Level = Literal["ok", "warn", "fail"]
Thresholds = dict[str, float]  # "warn", "fail"; either may be missing
_EXCERPT, _SHOWN = 120, 3  # characters of an offender, and offenders of a check that a message holds


class Offender(NamedTuple):
    """A row that a check found.

    Args:
        place: file and line.
        excerpt: what it says.
        why: what is wrong with it, in a few words.
    """

    place: str
    excerpt: str
    why: str


@dataclass(frozen=True)
class Check:
    """One measurement against its thresholds.

    Args:
        metric: name in the metrics file.
        value: what was measured.
        key: of the thresholds in the section: one that begins with min_ holds what the value must reach, any other
            what it must not exceed.
        thresholds: "warn" and "fail".
        meaning: what the value is, in words.
        way_out: what to do where it fails.
        offenders: the worst first.
    """

    metric: str
    value: float
    key: str
    thresholds: Mapping[str, float]
    meaning: str
    way_out: str
    offenders: Sequence[Offender] = field(default=())

    @property
    def is_minimum(self) -> bool:
        return self.key.startswith("min_")

    @property
    def level(self) -> Level:
        """How bad it is; a value at the threshold itself is within it, one that is no number is not."""
        levels: tuple[Level, ...] = ("fail", "warn")
        for level in levels:
            if level in self.thresholds:
                threshold = self.thresholds[level]
                is_within = self.value >= threshold if self.is_minimum else self.value <= threshold
                if not is_within:
                    return level
        return "ok"

    def verdict(self, where: str) -> str:
        """Value and threshold in words.

        Args:
            where: the section, such as "params.yaml: check_data"; "" for the command line.
        """
        level = self.level
        if level == "ok":
            return f"{self.metric} is {number(self.value)}"
        word = "below" if self.is_minimum else "above"
        threshold = number(self.thresholds[level])
        limit = f"{where}.{self.key}.{level}" if where else f"--{self.key} {level}"
        return f"{self.metric} is {number(self.value)}, {word} {limit}, which is {threshold}"


def check_thresholds(settings: Any, where: str) -> None:
    """Look at all flags of thresholds before anything is measured.

    Args:
        settings: a dataclass whose fields min_… and max_… hold thresholds.
        where: the section, or "" for the command line.

    Raises:
        UserError: another word than warn and fail, no number, or a value that would fail before it warns.
    """
    for key, thresholds in vars(settings).items():
        if not key.startswith(("min_", "max_")) or not isinstance(thresholds, dict):
            continue
        called = f"{where}.{key}" if where else f"--{key}"
        for level, threshold in thresholds.items():
            if level not in ("warn", "fail"):
                near = suggestion(str(level), ("warn", "fail"))
                raise UserError(f"{called}: wanted warn, fail or both, found {level}{near}")
            if isinstance(threshold, bool) or not isinstance(threshold, int | float):
                raise UserError(f"{called}.{level}: {threshold!r} is not a number; to switch it off, leave {level} out")
        if len(thresholds) == 2:
            first, last = thresholds["warn"], thresholds["fail"]
            if first < last if key.startswith("min_") else first > last:
                raise UserError(f"{called}: warn is {first:g} and fail {last:g}, so that it would fail before it warns")


def share_checks(
    count: int, measured: Sequence[tuple[str, str, Sequence[Offender], str, str]], settings: Any
) -> list[Check]:
    """Checks of how large a share of rows is at fault.

    Args:
        count: of all rows.
        measured: key of the thresholds, metric, the rows at fault, what the share is, and the way out, each.
        settings: thresholds by key; where they are None the check is left out.
    """
    checks = []
    for key, metric, offenders, meaning, way_out in measured:
        thresholds = getattr(settings, key)
        if thresholds is not None:
            checks.append(Check(metric, len(offenders) / max(1, count), key, thresholds, meaning, way_out, offenders))
    return checks


def number(value: float) -> str:
    """Short, and with enough digits to tell it from its threshold."""
    return f"{value:.4g}"


def report(checks: Sequence[Check], where: str) -> str:
    """A line a check, those that matter last, where a terminal ends.

    Args:
        checks: in any order.
        where: the section.
    """
    width = max((len(check.metric) for check in checks), default=0)
    lines = []
    for check in sorted(checks, key=lambda check: ("ok", "warn", "fail").index(check.level)):
        if check.level == "ok":
            lines.append(f"ok    {check.metric:<{width}}  {number(check.value)}")
        else:
            lines.append(f"{check.level:<6}{check.verdict(where)}")
    counts = {level: sum(check.level == level for check in checks) for level in ("ok", "warn", "fail")}
    lines.append(f"{len(checks)} checks: {counts['ok']} ok, {counts['warn']} to look at, {counts['fail']} failed")
    return "\n".join(lines)


def metrics_of(checks: Sequence[Check]) -> dict[str, float]:
    """The values by name, and how many checks warn and fail."""
    values = {check.metric: check.value for check in checks}
    levels = [check.level for check in checks]
    return values | {
        "num_checks": len(checks),
        "num_warnings": levels.count("warn"),
        "num_failures": levels.count("fail"),
    }


def write_offenders(checks: Sequence[Check], path: Path, before: Sequence[Mapping[str, Any]] = ()) -> None:
    """A line an offender: check, level, place, why, excerpt.

    Args:
        checks: all of them.
        path: the file.
        before: lines that stand in front.
    """
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for line in before:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        for check in checks:
            for offender in check.offenders:
                found = {"check": check.metric, "level": check.level, **offender._asdict()}
                file.write(json.dumps(found, ensure_ascii=False) + "\n")


def stop_on_failure(checks: Sequence[Check], title: str, where: str, listed: str, page: str) -> None:
    """End the program where a check failed.

    Args:
        checks: all of them.
        title: what was checked.
        where: the section.
        listed: the file that holds all offenders, or "" where none is written.
        page: of docs/.

    Raises:
        RunFailed: names every failed check with its value, threshold, first offenders and the way out.
    """
    failed = [check for check in checks if check.level == "fail"]
    if not failed:
        return
    lines = [f"{title}: {len(failed)} of {len(checks)} checks failed"]
    for check in failed:
        lines.append(f"{check.verdict(where)}: {check.meaning}")
        lines += [f"  {each.place}: {each.why}: {excerpt(each.excerpt)}" for each in check.offenders[:_SHOWN]]
        more = len(check.offenders) - _SHOWN
        if more > 0:
            lines.append(f"  and {more:,} more" + (f", in {listed}" if listed else ""))
        lines.append(f"  {check.way_out}")
    raise RunFailed("\n".join(lines), page)


def excerpt(text: str) -> str:
    """The beginning of a text on one line."""
    return json.dumps(shortened(" ".join(text.split()), _EXCERPT), ensure_ascii=False)
