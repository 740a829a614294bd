"""The Makefile: what it lists, and what it says when something is missing."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))


def run_make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run make in a folder that holds this project's Makefile and requirements, but is not a git checkout."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "GIT_"))}
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env=inherited | {"GIT_CEILING_DIRECTORIES": str(folder.parent)} | environment,
        capture_output=True,
        text=True,
    )


def test_make_alone_lists_every_target_with_a_line(tmp_path: Path) -> None:
    done = run_make(tmp_path)
    assert done.returncode == 0
    listed = dict(re.fullmatch(r"  make (\S+) +(\S.*)", line).groups() for line in done.stdout.splitlines())
    assert set(listed) == make_targets()
    assert {
        "setup",
        "test",
        "smoke",
        "train-sft",
        "train-reward",
        "train-dpo",
        "train-grpo",
        "train-rloo",
        "pipeline",
        "metrics",
        "tensorboard",
        "lint",
        "clean",
    } <= set(listed)


def test_set_up_says_what_is_missing(tmp_path: Path) -> None:
    old = tmp_path / "python-old"
    old.write_text(
        f"#!/bin/sh\nexec '{sys.executable}' -c 'import sys; sys.version_info = (3, 9); exec(sys.argv[1])' \"$2\"\n"
    )
    old.chmod(0o755)
    done = run_make(tmp_path, "setup", f"PYTHON={old}")
    assert done.returncode != 0
    assert "is Python 3.9; 3.11 or newer is needed (another one: make setup PYTHON=python3.12)" in done.stderr
    done = run_make(tmp_path, "test", "PYTHON=no-such-python")
    assert done.returncode != 0
    assert "posttrain: no-such-python is not installed; Python 3.11 or newer is needed" in done.stderr


def test_a_pipeline_outside_of_git_says_so_before_anything_is_installed(tmp_path: Path) -> None:
    done = run_make(tmp_path, "train-dpo")
    assert done.returncode != 0
    assert "posttrain: this folder is not a git checkout" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_make_never_touches_the_dvc_cache() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert not re.search(r"\bgc\b|\.dvc/cache", text)
    clean = re.search(r"^clean:.*\n((?:\t.*\n)+)", text, flags=re.MULTILINE)
    assert clean
    removed = [word for word in clean[1].split() if not word.startswith("-")]
    assert not {".", "*", ".dvc", "data", "models", "results", ".git"} & set(removed)
