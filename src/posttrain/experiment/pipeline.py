"""The stages of dvc.yaml as DVC understands them, with parameters and items put in, and what DVC says of each."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from posttrain.config import suggestion
from posttrain.config.yaml_files import FastLoader
from posttrain.errors import UserError
from posttrain.experiment.closure import import_closure
from posttrain.experiment.revisions import flat


@dataclass(frozen=True)
class Stage:
    """One stage, or one item of a stage with a matrix.

    Args:
        name: "dpo", "evaluate@sft".
        command: that DVC runs, in the folder of dvc.yaml.
        deps: paths of files and folders that it reads; parameters are apart.
        outs: paths that it writes and DVC keeps.
        tracked: paths that it writes and git keeps: metrics and plots.
        params: keys by params file.
        frozen: DVC leaves it alone, whatever has changed.
    """

    name: str
    command: str
    deps: tuple[str, ...]
    outs: tuple[str, ...]
    tracked: tuple[str, ...]
    params: dict[str, tuple[str, ...]]
    frozen: bool

    @property
    def script(self) -> str | None:
        """The file of Python that its command runs."""
        return next((word for word in self.command.split() if word.endswith(".py")), None)

    def trains(self, root: Path) -> bool:
        """Whether it is one that trains with posttrain, and so takes its flags.

        Args:
            root: the folder of dvc.yaml.
        """
        source = Path(__file__).parents[2]
        if self.script is None or not (root / self.script).is_file():
            return False
        return source / "posttrain/training.py" in import_closure(root / self.script, source)


class Pipeline:
    """A repository of DVC.

    Args:
        root: a folder in it.

    Attributes:
        stages: by name, in the order of dvc.yaml.
        lock: what dvc.lock says of each stage; {} where it says nothing.

    Raises:
        UserError: there is no DVC repository here, or DVC cannot read its files.
    """

    def __init__(self, root: Path = Path()):
        os.environ.setdefault("DVC_NO_ANALYTICS", "1")
        with _explained():
            from dvc.repo import Repo

            self._repo = Repo(str(root))
            self.root = Path(self._repo.root_dir)
            # Pickles of DVC's own, which others could exchange where it would put them: as in the Makefile.
            os.environ.setdefault("DVC_SITE_CACHE_DIR", str(self.root / ".dvc/tmp/site"))
            self._stages = {stage.addressing: stage for stage in self._repo.index.stages if stage.cmd}
        self.stages = {name: _read(stage) for name, stage in self._stages.items()}
        # As DVC reads YAML, in which `no` is a word.
        self._params_before = {
            name: {dep.def_path: dep.hash_info.value for dep in stage.deps if hasattr(dep, "params")}
            for name, stage in self._stages.items()
        }
        file = self.root / "dvc.lock"
        lock = yaml.load(file.read_text(encoding="utf-8"), FastLoader) if file.is_file() else None
        self.lock: dict[str, dict[str, Any]] = (lock or {}).get("stages", {})

    def stage(self, name: str) -> Stage:
        """A stage by its name.

        Raises:
            UserError: there is none of this name.
        """
        if name not in self.stages:
            items = [one for one in self.stages if one.startswith(f"{name}@")]
            more = f"; its items are {', '.join(items)}" if items else suggestion(name, self.stages)
            raise UserError(f"dvc.yaml: there is no stage {name}{more or '; found ' + ', '.join(self.stages)}")
        return self.stages[name]

    def status(self, name: str) -> tuple[dict[str, str], dict[str, str], bool]:
        """What DVC finds changed, were the stage not frozen: one that is, DVC itself calls up to date.

        Args:
            name: of a stage.

        Returns:
            By path what is with the deps and with the outs ("modified", "deleted", "new", "not in cache"), parameters
            left out; and whether the command itself, or the list of deps and outs, is another one.
        """
        stage = self._stages[name]
        stage.frozen = False
        stage.deps = [dep for dep in stage.deps if not hasattr(dep, "params")]  # DVC would read the file for each stage
        with _explained(), self._repo.lock:
            found = stage.status().get(name, [])
        changed: dict[str, dict[str, str]] = {"changed deps": {}, "changed outs": {}}
        for entry in found:
            if isinstance(entry, dict):
                for kind, paths in entry.items():
                    changed[kind] |= {path: word for path, word in paths.items() if isinstance(word, str)}
        return changed["changed deps"], changed["changed outs"], "changed checksum" in found

    @functools.lru_cache  # noqa: B019 (one object, for one command)
    def _params_now(self, file: str) -> Any:
        from dvc.utils.serialize import load_yaml

        with _explained():
            return load_yaml(str(self.root / file))

    def changed_params(self, name: str) -> Iterator[tuple[str, Any, Any]]:
        """Keys whose values are not those that a stage ran with, with the old value and the new one; None where a key
        is not there.

        Args:
            name: of a stage that has run.
        """
        for file, keys in self.stages[name].params.items():
            before, content = self._params_before[name].get(file) or {}, self._params_now(file)
            old = flat({key: before.get(key) for key in keys})
            new = flat({key: _at(content, key) for key in keys})
            for key in dict.fromkeys([*old, *new]):
                if old.get(key) != new.get(key):
                    yield key, old.get(key), new.get(key)

    def followers(self, name: str) -> list[str]:
        """Stages that read what a stage writes, directly or through others, in the order of dvc.yaml."""
        found, open_stages = {name}, [name]
        while open_stages:
            outs = set(self.stages[open_stages.pop()].outs)
            new = [one for one, stage in self.stages.items() if one not in found and _reads(stage, outs)]
            found.update(new)
            open_stages += new
        return [one for one in self.stages if one in found - {name}]


def _at(content: Any, key: str) -> Any:
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


def _reads(stage: Stage, outs: set[str]) -> bool:
    return any(dep == out or dep.startswith(f"{out}/") for dep in stage.deps for out in outs)


def _read(stage: Any) -> Stage:
    params = {dep.def_path: tuple(dep.params) for dep in stage.deps if hasattr(dep, "params")}
    outs = [(out.def_path, out.use_cache and not (out.metric or out.plot)) for out in stage.outs]
    command = stage.cmd if isinstance(stage.cmd, str) else " && ".join(stage.cmd)
    return Stage(
        stage.addressing,
        command,
        tuple(dep.def_path for dep in stage.deps if not hasattr(dep, "params")),
        tuple(path for path, is_kept in outs if is_kept),
        tuple(path for path, is_kept in outs if not is_kept),
        params,
        stage.frozen,
    )


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """What DVC cannot do, as a message to the user; its own log stays quiet meanwhile."""
    log = logging.getLogger("dvc")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        from dvc.exceptions import DvcException, NotDvcRepoError

        try:
            yield
        except NotDvcRepoError:
            raise UserError(
                "this folder is in no DVC repository; go to the one that dvc.yaml lies in (a checkout of posttrain, or "
                "`git init && dvc init` for an experiment of your own)"
            ) from None
        except DvcException as error:
            reason = f"{error}: {error.__cause__}" if error.__cause__ else str(error)
            raise UserError(f"DVC: {' '.join(reason.split())}") from error
    finally:
        log.setLevel(level)
