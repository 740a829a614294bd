"""One state of the pipeline, wherever it is kept: the working tree, a revision of git, an experiment of DVC, a folder.

What git tracks is read from git; what DVC tracks from its cache, or from a remote where the cache lacks it.
"""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from posttrain.checkout import git
from posttrain.config.fields import suggestion
from posttrain.config.yaml_files import FastLoader, Loader
from posttrain.errors import UserError

WORKSPACE = "workspace"
PAGE = "compare.md"
_EXPERIMENTS = "refs/exps/"
_NO_EXPERIMENTS = ("exec", "celery", "stash", "apply", "temp")  # refs of DVC's own beside those of the experiments


@dataclass(frozen=True)
class Experiment:
    """What the pipeline was told, and what came out.

    Args:
        name: as it was asked for.
        revision: commit of git; None for the working tree and for a folder.
        root: the repository, or the folder.
        params: params.yaml, section by section.
        lock: dvc.lock; empty where there is none.
        metrics: metrics/<stage>.json by stage: "dpo", "evaluate_dpo".
        curves: plots/<stage>.csv by stage, a row a logged step, with "step"; what was not logged is left out.
        stale: stages that were not run again when what they read had changed, by dvc.lock. Their metrics and curves
            are those of another model, and left out.
    """

    name: str
    revision: str | None
    root: Path
    params: dict[str, dict[str, Any]]
    lock: dict[str, Any]
    metrics: dict[str, dict[str, float]]
    curves: dict[str, list[dict[str, float]]]
    stale: tuple[str, ...] = ()
    _texts: dict[str, str | None] = field(default_factory=dict, repr=False, compare=False)

    def file(self, path: str) -> str | None:
        """The text of a file that git or DVC tracks; None where there is none.

        Args:
            path: under the repository, with slashes.
        """
        if path not in self._texts:
            self._texts[path] = _text(self.root, self.revision, path, self.lock)
        return self._texts[path]

    def results(self, model: str) -> list[dict[str, Any]]:
        """Rows of results/evaluate_<model>.jsonl (experiment/evaluation.py tells their fields).

        Args:
            model: a policy's name, such as "dpo".

        Raises:
            UserError: there are none, or they are not on this machine.
        """
        path = f"results/evaluate_{model}.jsonl"
        text = self.file(path)
        if text is None:
            is_known = any(path == str(out["path"]) for out in outs_of(self.lock))
            way_out = f"`dvc pull --rev {self.name}` fetches" if self.revision else "`dvc pull` fetches"
            raise UserError(
                f"{self.name}: {path} "
                + (
                    f"is not in DVC's cache here; {way_out} it where there is a remote, `dvc repro` makes it again"
                    if is_known
                    else f"does not exist there; the stage evaluate@{model} writes it"
                ),
                PAGE,
            )
        return [json.loads(line) for line in text.split("\n") if line]

    @property
    def models(self) -> list[str]:
        """The policies that were evaluated."""
        return [name.removeprefix("evaluate_") for name in self.metrics if name.startswith("evaluate_")]


def read_experiment(where: str, root: Path = Path()) -> Experiment:
    """Read a state of the pipeline.

    Args:
        where: "workspace", the name of an experiment, a revision of git, or a folder with a copy of the repository's
            params.yaml, metrics/, plots/ and results/.
        root: the repository.

    Raises:
        UserError: there is nothing of that name.
    """
    if where == WORKSPACE:
        return _read(where, None, root)
    folder = root / Path(where).expanduser()
    if folder.is_dir() and any((folder / name).exists() for name in ("params.yaml", "metrics")):
        return _read(where, None, folder)
    revision = _refs(root).get(where) or _commit(root, where)
    if revision is None:
        known = [WORKSPACE, *experiment_names(root), *_branches(root)]
        raise UserError(
            f"{where!r} is no experiment, no revision of git, and no folder with a params.yaml; `dvc exp list "
            f"--all-commits` lists the experiments{suggestion(where, known)}",
            PAGE,
        )
    return _read(where, revision, root)


def experiment_names(root: Path = Path()) -> list[str]:
    """The experiments of DVC that this repository holds, of all commits, newest first."""
    return list(_refs(root))


def flat(params: Mapping[str, Any]) -> dict[str, Any]:
    """Sections in one level: {"dpo": {"beta": 0.5}} → {"dpo.beta": 0.5}."""
    found: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, Mapping) and value:
            found |= {f"{name}.{key}": inner for key, inner in flat(value).items()}
        else:
            found[name] = value
    return found


def outs_of(lock: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What stages have written, by a dvc.lock: path, md5, size …"""
    for stage in lock.get("stages", {}).values():
        yield from stage.get("outs", [])


def stale_stages(lock: Mapping[str, Any]) -> tuple[str, ...]:
    """Stages that read something else than what stands there now, or what such a stage has written.

    Args:
        lock: dvc.lock.
    """
    stages = lock.get("stages", {})
    made = {out["path"]: (name, out.get("md5")) for name, stage in stages.items() for out in stage.get("outs", [])}
    stale: set[str] = set()
    while True:
        found = {
            name
            for name, stage in stages.items()
            for dep in stage.get("deps", [])
            if dep["path"] in made and (made[dep["path"]][0] in stale or made[dep["path"]][1] != dep.get("md5"))
        }
        if found == stale:
            return tuple(name for name in stages if name in stale)
        stale = found


def _read(name: str, revision: str | None, root: Path) -> Experiment:
    lock = yaml.load(_tracked(root, revision, "dvc.lock") or "{}", FastLoader) or {}
    params = yaml.load(_tracked(root, revision, "params.yaml") or "{}", Loader) or {}
    metrics = {path.stem: json.loads(text) for path, text in _all(root, revision, "metrics", ".json")}
    curves = {path.stem: _rows(text) for path, text in _all(root, revision, "plots", ".csv")}
    stale = stale_stages(lock)
    old = {PurePosixPath(out["path"]) for stage in stale for out in lock["stages"][stage].get("outs", [])}
    return Experiment(
        name,
        revision,
        root,
        params,
        lock,
        {stage: values for stage, values in metrics.items() if PurePosixPath(f"metrics/{stage}.json") not in old},
        {stage: rows for stage, rows in curves.items() if PurePosixPath(f"plots/{stage}.csv") not in old},
        stale,
    )


def _rows(text: str) -> list[dict[str, float]]:
    return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(text.splitlines())]


def _all(root: Path, revision: str | None, folder: str, suffix: str) -> Iterator[tuple[PurePosixPath, str]]:
    """The files of a folder that git tracks (of the working tree: that are there), with their texts."""
    if revision is None:
        paths = [PurePosixPath(folder, path.name) for path in sorted((root / folder).glob(f"*{suffix}"))]
    else:
        listed = git(root, "ls-tree", "--name-only", revision, f"{folder}/") or ""
        paths = [PurePosixPath(line) for line in sorted(listed.splitlines()) if line.endswith(suffix)]
    for path in paths:
        text = _tracked(root, revision, path.as_posix())
        if text is not None:
            yield path, text


def _tracked(root: Path, revision: str | None, path: str) -> str | None:
    """The text of a file of the working tree, or of one that git tracks."""
    if revision is None:
        file = root / path
        return file.read_text(encoding="utf-8") if file.is_file() else None
    return git(root, "show", f"{revision}:./{path}")


def _text(root: Path, revision: str | None, path: str, lock: Mapping[str, Any]) -> str | None:
    text = _tracked(root, revision, path)
    if text is not None or revision is None:
        return text
    parts = PurePosixPath(path)
    out = next((out for out in outs_of(lock) if parts.is_relative_to(str(out["path"]))), None)
    if out is None:
        return None
    cache, remotes = _storage_of(root)
    kept = cache / out["md5"][:2] / out["md5"][2:]
    if path == out["path"] and kept.is_file():  # to go through DVC takes seconds a file
        return kept.read_text(encoding="utf-8")
    import dvc.api
    from dvc.exceptions import DvcException

    try:
        content: str = dvc.api.read(path, repo=str(root), rev=revision, encoding="utf-8", config=remotes)
    except (DvcException, OSError):  # neither in the cache nor in a remote
        return None
    return content


@functools.cache
def _storage_of(root: Path) -> tuple[Path, dict[str, Any]]:
    """Where DVC keeps files by their md5; and the remotes of now, which a revision that is older than they does not
    know."""
    from dvc.repo import Repo

    with Repo(str(root)) as repository:
        remotes = {"core": {"remote": repository.config["core"].get("remote")}, "remote": repository.config["remote"]}
        return Path(repository.cache.local.path), remotes if remotes["core"]["remote"] else {}


def _refs(root: Path) -> dict[str, str]:
    """Experiments and their commits, newest first. A name that stands for several is that of the newest."""
    form = "--format=%(refname) %(objectname)"
    found: dict[str, str] = {}
    for line in (git(root, "for-each-ref", "--sort=-committerdate", form, _EXPERIMENTS) or "").splitlines():
        ref, commit = line.split()
        kind, *rest = ref.removeprefix(_EXPERIMENTS).split("/")
        if kind not in _NO_EXPERIMENTS and len(rest) == 2:  # ab/cdef…/name: the first two are the commit it began from
            found.setdefault(rest[1], commit)
    return found


def _branches(root: Path) -> list[str]:
    return (git(root, "for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/tags") or "").splitlines()


def _commit(root: Path, name: str) -> str | None:
    if name.startswith("-"):
        return None
    text = git(root, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    return text.strip() if text else None
