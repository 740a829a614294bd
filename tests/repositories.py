"""Repositories of git and DVC to work in. `git init` and `dvc init` happen once, and commands of DVC in this process:
each start of it takes 0.6 s."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from unittest import mock


@functools.cache
def _new() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="posttrain-repository-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for words in ("git init -q -b main", "git config user.email a@b.c", "git config user.name a", "dvc init -q"):
        subprocess.run([*words.split()], cwd=folder, check=True, env=environment())
    return folder


def write_repository(folder: Path) -> Path:
    """A repository in which git knows who commits, and nothing has been committed."""
    return shutil.copytree(_new(), folder, dirs_exist_ok=True)


def dvc(folder: Path, *words: str) -> None:
    """Runs `dvc WORDS` in a folder, as it is typed there; its stages find this Python.

    Raises:
        AssertionError: it has failed.
    """
    from dvc.cli import main

    with contextlib.chdir(folder), mock.patch.dict(os.environ, environment()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what DVC uses, as in a process of its own
        for handler in logging.getLogger("dvc").handlers:  # they keep what stderr was in the test that came first
            if isinstance(handler, logging.StreamHandler):
                handler.setStream(sys.__stderr__)
        assert main(list(words)) == 0, f"dvc {' '.join(words)}"


def environment() -> dict[str, str]:
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
