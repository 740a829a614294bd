"""The two sides of a comparison: one experiment each, or several that differ in seeds alone."""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from posttrain.config.fields import suggestion
from posttrain.errors import UserError
from posttrain.experiment.revisions import PAGE, Experiment, experiment_names, flat, read_experiment


class Unit(Enum):
    """What a difference is judged over; the value says it in words."""

    ROWS = "one run a side, so intervals are over held-out rows"
    SAME_SEEDS = "intervals are over seeds, paired by equal seeds"
    OTHER_SEEDS = "intervals are over seeds, which are not the same on both sides, so nothing is paired"
    NONE = "one side is a single run, so nothing tells how much seeds alone would change: no intervals"


@dataclass(frozen=True)
class Side:
    """Experiments that repeat each other.

    Args:
        name: as it was asked for.
        experiments: at least one; several differ in seeds alone.
    """

    name: str
    experiments: list[Experiment]

    @property
    def first(self) -> Experiment:
        return self.experiments[0]

    def values(self, stage: str, metric: str) -> list[float]:
        """A metric of each experiment; empty where one lacks it."""
        found = [experiment.metrics.get(stage, {}).get(metric) for experiment in self.experiments]
        return [float(value) for value in found if value is not None] if None not in found else []


def is_seed(key: str) -> bool:
    """Whether a parameter such as "dpo.seed" says where draws come from, and nothing else."""
    return key.rpartition(".")[2] in ("seed", "data_seed")


def read_sides(a: str, b: str, root: Path = Path()) -> tuple[Side, Side, Unit]:
    """Read both sides, the second in the order of the seeds of the first where they are the same.

    Args:
        a: a name of an experiment, or several with commas between; * stands for any part of an experiment's name.
        b: the same.
        root: the repository.

    Raises:
        UserError: there is nothing of a name, or the experiments of a side differ in more than seeds.
    """
    left, right = _read_side(a, root), _read_side(b, root)
    counts = len(left.experiments), len(right.experiments)
    if counts == (1, 1):
        return left, right, Unit.ROWS
    if 1 in counts:
        return left, right, Unit.NONE
    order = [_seeds(experiment) for experiment in left.experiments]
    theirs = {_seeds(experiment): experiment for experiment in right.experiments}
    if set(order) != set(theirs):
        return left, right, Unit.OTHER_SEEDS
    return left, replace(right, experiments=[theirs[seeds] for seeds in order]), Unit.SAME_SEEDS


def _read_side(text: str, root: Path) -> Side:
    names = [name for part in text.split(",") if part for name in _expand(part.strip(), root)]
    if not names:
        raise UserError(f"{text!r} names no experiment")
    side = Side(text, [read_experiment(name, root) for name in dict.fromkeys(names)])
    _check_repetitions(side.experiments)
    return side


def _expand(pattern: str, root: Path) -> list[str]:
    if "*" not in pattern:
        return [pattern]
    known = experiment_names(root)
    found = sorted(fnmatch.filter(known, pattern))
    if not found:
        raise UserError(f"{pattern!r} fits no experiment{suggestion(pattern.strip('*-'), known)}", PAGE)
    return found


def _check_repetitions(experiments: Sequence[Experiment]) -> None:
    first, *others = experiments
    taken = {_seeds(first): first.name}
    for other in others:
        params, theirs = flat(first.params), flat(other.params)
        differing = [key for key in {**params, **theirs} if params.get(key) != theirs.get(key) and not is_seed(key)]
        if differing:
            raise UserError(
                f"{first.name} and {other.name} differ in {', '.join(differing)}; several experiments on one side are "
                "repetitions of each other, which differ in seeds alone",
                PAGE,
            )
        seeds = _seeds(other)
        if seeds in taken:
            raise UserError(
                f"{taken[seeds]} and {other.name} have the same seeds, so they say the same thing twice; name one", PAGE
            )
        taken[seeds] = other.name


def _seeds(experiment: Experiment) -> tuple[tuple[str, str], ...]:
    return tuple((key, str(value)) for key, value in sorted(flat(experiment.params).items()) if is_seed(key))
