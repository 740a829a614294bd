"""The combinations of a sweep: what each of them sets, and its name."""

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from posttrain.config import METHODS, load_yaml, parse_command_line, suggestion
from posttrain.config.yaml_files import FastLoader, Loader
from posttrain.errors import UserError
from posttrain.experiment.revisions import experiment_names, flat
from posttrain.gpu_slots import devices
from posttrain.machine import num_cores

PARAMS = "params.yaml"
MOST_RUNS = 1000  # a grid of more is a slip of the keyboard
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")


@dataclass(frozen=True)
class Run:
    """One combination.

    Args:
        name: of the experiment; one that no other has.
        values: text of each value, by key.
    """

    name: str
    values: dict[str, str]

    @property
    def settings(self) -> list[str]:
        """As behind `dvc exp run -S`."""
        return [f"{key}={value}" for key, value in self.values.items()]


def read_grid(settings: Sequence[str], root: Path = Path(), taken: Iterable[str] = ()) -> list[Run]:
    """Every combination of the values.

    Args:
        settings: words of the form KEY=VALUES.
        root: the repository, with params.yaml.
        taken: names that experiments cannot have, beside those of the experiments that there are.

    Raises:
        UserError: a key is not in params.yaml, or a value is none that its stage takes.
    """
    axes: dict[str, list[str]] = {}
    for setting in settings:
        for part in setting.split():  # make hands all of SET over as one word
            key, equals, text = part.partition("=")
            if not equals or not text:
                raise UserError(f"{part}: wanted a key and its values, such as dpo.beta=0.05,0.1")
            axes[key] = _values(text)
    if not axes:
        raise UserError("no values are given; wanted keys and their values, such as dpo.beta=0.05,0.1")
    params = load_yaml(str(root / PARAMS))
    for key in axes:
        _check_key(key, params)
    number = math.prod(map(len, axes.values()))
    if number > MOST_RUNS:
        raise UserError(f"that makes {number:,} combinations; more than {MOST_RUNS:,} are hardly meant")
    combinations = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    for combination in combinations:
        _check_values(combination, params)
    names = set(experiment_names(root)) | set(taken)
    varying = [key for key, values in axes.items() if len(values) > 1] or list(axes)
    return [
        Run(_free_name(_name({key: combination[key] for key in varying}), names), combination)
        for combination in combinations
    ]


def check_stages(stages: Sequence[str], root: Path = Path()) -> None:
    """Raise a UserError for a stage that dvc.yaml does not have."""
    known = []
    for name, stage in yaml.load((root / "dvc.yaml").read_text(encoding="utf-8"), FastLoader)["stages"].items():
        axes = stage.get("matrix", {}).values()
        known += [f"{name}@{'-'.join(map(str, items))}" for items in itertools.product(*axes)] if axes else [name]
    for stage in stages:
        if stage not in {*known, *(name.partition("@")[0] for name in known)}:
            raise UserError(f"--stages {stage}: dvc.yaml has no such stage{suggestion(stage, known)}")


def check_jobs(jobs: int | None) -> int:
    """How many run at a time: as asked for; else one a GPU, or without GPUs two where there are as many cores."""
    if jobs is None:
        return len(devices()) or min(2, num_cores())
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: wanted at least 1")
    return jobs


def _values(text: str) -> list[str]:
    """Split at the commas that stand outside of brackets, braces and quotes; ranges become their numbers."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    values = []
    for part in parts:
        found = _RANGE.fullmatch(part)
        if found:
            first, last = int(found[1]), int(found[2])
            if last < first or last - first > MOST_RUNS:
                raise UserError(f"{part}: wanted a range from a smaller to a larger number, such as 0..2")
            values += [str(number) for number in range(first, last + 1)]
        elif not part:
            raise UserError(f"{text}: a value is missing before or behind a comma")
        else:
            values.append(part)
    return list(dict.fromkeys(values))


def _check_key(key: str, params: Mapping[str, Any]) -> None:
    section, _, name = key.removeprefix("+").partition(".")
    known = [*flat(params), *(f"{stage}.{own}" for stage, keys in params.items() for own in keys)]
    if section not in params or not name:
        raise UserError(f"{key}: {PARAMS} has no such key{suggestion(key, known)}")
    is_there = key in known
    if not key.startswith("+") and not is_there:
        adds = f" (+{key}=… adds a flag that is not there yet)" if section in METHODS else ""
        raise UserError(f"{key}: {PARAMS} has no such key{adds}{suggestion(key, known)}")


def _check_values(combination: Mapping[str, str], params: Mapping[str, Any]) -> None:
    """Raise a UserError for what a stage that trains would not take."""
    changed: dict[str, dict[str, Any]] = {}
    for key, text in combination.items():
        section, _, name = key.removeprefix("+").partition(".")
        try:
            value = yaml.load(text, Loader)
        except yaml.YAMLError as error:
            raise UserError(f"{key}={text}: that is no value of YAML ({str(error).splitlines()[0]})") from None
        changed.setdefault(section, dict(params[section]))
        if "." not in name:
            changed[section][name] = value
    for section, values in changed.items():
        if section in METHODS:
            parse_command_line(section, [], values, f"sweep: {section}")


def _name(combination: Mapping[str, str]) -> str:
    """beta-0.05-seed-1; the section before a key that two sections have."""
    keys = [key.removeprefix("+") for key in combination]
    short = [key.rpartition(".")[2] for key in keys]
    heads = [name if short.count(name) == 1 else key for key, name in zip(keys, short, strict=True)]
    words = [f"{head}-{value}" for head, value in zip(heads, combination.values(), strict=True)]
    # What a ref of git may hold, and a command line without quotes.
    text = re.sub(r"[^\w.+-]+|\.(?=\.|-|$)", "-", "-".join(words), flags=re.ASCII)
    text = re.sub(r"-{2,}(?=[A-Za-z])", "-", text).strip(".-")
    return text[:100].removesuffix(".lock").rstrip(".-") or "sweep"


def _free_name(name: str, names: set[str]) -> str:
    numbered = (f"{name}.{number}" for number in itertools.count(2))
    free = next(one for one in itertools.chain([name], numbered) if one not in names)
    names.add(free)
    return free
