"""All that the report shows, read once: experiments, what DVC says of the working tree, answers, provenance."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.errors import UserError
from posttrain.experiment.revisions import WORKSPACE, Experiment, experiment_names, read_experiment

MOST_EXPERIMENTS = 8  # beside the workspace, where none are named

Result = dict[str, Any]


@dataclass(frozen=True)
class Group:
    """Experiments in which something is the same, such as a stage that was taken from the cache.

    Args:
        names: of the experiments, the first that has it first.
        value: what they share.
        place: of the first among all experiments, which decides its colour.
    """

    names: list[str]
    value: Any
    place: int

    @property
    def label(self) -> str:
        """The first name, and how many others there are."""
        return self.names[0] + (f" (+{len(self.names) - 1} the same)" if len(self.names) > 1 else "")


@dataclass(frozen=True)
class Gathered:
    """What the page is made from.

    Args:
        experiments: the first is the one that others are compared with; names are unique.
        answers: of each experiment, by model: results of the problems, as evaluation.py describes them.
        missing: in words, what an experiment ought to have and has not, and what makes it.
        status: by stage, why it is not up to date, as `dvc status` says of the workspace; None where it was not asked.
        commit: of the repository; None outside of git.
        dirty: whether files that git tracks are not as in that commit.
        left_out: experiments of this commit that are older, and not shown.
    """

    experiments: list[Experiment]
    answers: dict[str, dict[str, list[Result]]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    status: dict[str, list[str]] | None = None
    commit: str | None = None
    dirty: bool = False
    left_out: list[str] = field(default_factory=list)

    @property
    def first(self) -> Experiment:
        return self.experiments[0]

    @property
    def names(self) -> list[str]:
        return [one.name for one in self.experiments]

    @property
    def models(self) -> list[str]:
        """Policies that were evaluated in any of them, in the order of the pipeline."""
        return self.in_order({model for one in self.experiments for model in one.models})

    @property
    def trained(self) -> list[str]:
        """Stages with metrics or curves that are no evaluation, in the order of the pipeline."""
        found = {name for one in self.experiments for name in (*one.metrics, *one.curves)}
        return self.in_order({name for name in found if not name.startswith("evaluate_")})

    def in_order(self, names: set[str]) -> list[str]:
        """Names of stages or models, as params.yaml has its sections."""
        order = list(dict.fromkeys(name for one in self.experiments for name in one.params))
        return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))

    def groups(self, value: Callable[..., Any], *about: str) -> list[Group]:
        """Experiments by a value; those without it (None) are in no group.

        Args:
            value: of an experiment and `about`, such as the name of a stage.
        """
        found: list[Group] = []
        for place, one in enumerate(self.experiments):
            own = value(one, *about)
            same = next((group for group in found if group.value == own), None)
            if same is not None:
                same.names.append(one.name)
            elif own is not None:
                found.append(Group([one.name], own, place))
        return found


def gather(names: Sequence[str], root: Path = Path()) -> Gathered:
    """Read all that the report shows.

    Args:
        names: of experiments; none: the workspace, and the newest experiments of the commit that is checked out.
        root: the repository.

    Raises:
        UserError: there is no such experiment, or none of them has a params.yaml or metrics.
    """
    left_out: list[str] = []
    if not names:
        own = _experiments_here(root)
        names, left_out = [WORKSPACE, *own[:MOST_EXPERIMENTS]], own[MOST_EXPERIMENTS:]
    experiments = [read_experiment(name, root) for name in names]
    if not any(one.params or one.metrics or one.lock for one in experiments):
        raise UserError(
            f"{', '.join(names)}: no params.yaml, dvc.lock or metrics there; run this in a folder with a pipeline, "
            "after `make pipeline`"
        )
    answers, missing = _answers(experiments)
    commit = _git(root, "rev-parse", "HEAD")
    return Gathered(
        experiments=experiments,
        answers=answers,
        missing=[
            *missing,
            *(
                f"{one.name}: {', '.join(one.stale)} were not run again after what they read had changed, and are left "
                "out; `dvc repro` runs them"
                for one in experiments
                if one.stale
            ),
        ],
        status=_status(root) if names[0] == WORKSPACE else None,
        commit=commit.strip() if commit else None,
        dirty=bool(_git(root, "status", "--porcelain", "--untracked-files=no")),
        left_out=left_out,
    )


def provenance_of(one: Experiment, model: str) -> Any:
    """What stands in models/<model>.provenance.json, but for folders of this machine; None where there is no such file,
    or it cannot be read."""
    text = one.file(f"models/{model}.provenance.json")
    try:
        found = None if text is None else json.loads(text)
    except ValueError:
        return None
    return {key: value for key, value in found.items() if key != "directory"} if isinstance(found, dict) else found


def _answers(experiments: Sequence[Experiment]) -> tuple[dict[str, dict[str, list[Result]]], list[str]]:
    answers: dict[str, dict[str, list[Result]]] = {}
    missing = []
    for one in experiments:
        found = answers.setdefault(one.name, {})
        for model in one.models:
            try:
                rows = one.results(model)
            except UserError as error:
                missing.append(str(error))
            else:
                found[model] = [row for row in rows if "completion" in row]
    return answers, missing


def _experiments_here(root: Path) -> list[str]:
    """DVC's experiments that began from the commit that is checked out, newest first."""
    head = (_git(root, "rev-parse", "HEAD") or "").strip()
    listed = _git(root, "for-each-ref", "--format=%(refname)", f"refs/exps/{head[:2]}/{head[2:]}") if head else None
    here = {line.rpartition("/")[2] for line in (listed or "").splitlines()}
    return [name for name in experiment_names(root) if name in here]


def _status(root: Path) -> dict[str, list[str]] | None:
    """By stage, what `dvc status` finds changed."""
    words = [sys.executable, "-m", "dvc", "status", "--json"]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, env=os.environ | {"DVC_NO_ANALYTICS": "1"})
    try:
        told = json.loads(done.stdout) if done.returncode == 0 else None
    except ValueError:
        told = None
    if not isinstance(told, dict):
        return None
    return {stage: [reason for entry in entries for reason in _reasons(entry)] for stage, entries in told.items()}


def _reasons(entry: Any) -> list[str]:
    if not isinstance(entry, dict):
        return [str(entry)]
    found = []
    for kind, changed in entry.items():
        listed = changed.items() if isinstance(changed, dict) else []
        for path, how in listed:
            if isinstance(how, dict):  # params.yaml: {"dpo.beta": "modified"}
                found += [f"{kind}: {key} {said}" for key, said in how.items()]
            else:
                found.append(f"{kind}: {path} {how}")
        if not listed:
            found.append(str(kind) if isinstance(changed, dict) else f"{kind}: {changed}")
    return found


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None
