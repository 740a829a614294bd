"""What git knows of the folder that a run happens in: its commit, and what stands there that no commit holds."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import subprocess
from pathlib import Path
from typing import Any

SECONDS = 20.0  # that an answer of git may take; on a slow disk a large tree takes a few


def git(folder: Path, *words: str) -> str | None:
    """What a git command prints; None where there is no git, no checkout, or no answer.

    Args:
        folder: to run it in.
        *words: of the command, such as "rev-parse", "HEAD".
    """
    try:
        done = subprocess.run(
            ["git", *words],
            cwd=folder,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},  # looking on, it gets in nobody's way
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


def root_of(folder: Path) -> Path | None:
    """The top folder of the checkout that a folder is in; None where it is in none."""
    top = git(folder, "rev-parse", "--show-toplevel")
    return Path(top.removesuffix("\n")) if top else None


def state_of(folder: Path) -> dict[str, Any] | None:
    """The commit of a checkout and how the tree differs from it, as plain data.

    Args:
        folder: the checkout, or a folder in it.

    Returns:
        commit and branch (None before the first commit, and where none is checked out), dirty, changed (tracked files
        that are not as in the commit, without those that the stages of a pipeline write), untracked (files of Python
        that git does not know) and diff_sha256 (of both; None where the tree is clean). None where there is no git or
        no checkout.
    """
    root = root_of(folder)
    if root is None:
        return None
    commit = git(root, "rev-parse", "--verify", "HEAD")
    branch = git(root, "symbolic-ref", "--short", "-q", "HEAD")
    changed, untracked = changed_files(root), untracked_code(root)
    is_dirty = bool(changed or untracked)
    return {
        "commit": commit.strip() if commit else None,
        "branch": branch.strip() if branch else None,
        "dirty": is_dirty,
        "changed": changed,
        "untracked": untracked,
        "diff_sha256": _digest(root, changed, untracked) if is_dirty else None,
    }


def changed_files(root: Path) -> list[str]:
    """Tracked files that are not as in the last commit, but for those that stages write: after `dvc repro` every tree
    has new metrics and a new dvc.lock, and that says nothing of what was trained.

    Args:
        root: top folder of a checkout.
    """
    text = git(root, "status", "--porcelain=v1", "-z", "--untracked-files=no") or ""
    entries, found = iter(text.split("\0")), []
    for entry in entries:
        if entry:
            found.append(entry[3:])
            if "R" in entry[:2] or "C" in entry[:2]:
                next(entries, None)  # the name that it had
    made = made_by_stages(root) if found else []
    return sorted(path for path in found if not any(fnmatch.fnmatch(path, pattern) for pattern in made))


def untracked_code(root: Path) -> list[str]:
    """Files of Python that git neither tracks nor ignores.

    Args:
        root: top folder of a checkout.
    """
    text = git(root, "ls-files", "--others", "--exclude-standard", "-z", "--", "*.py") or ""
    return sorted(path for path in text.split("\0") if path)


def changed_since(root: Path, commit: str, where: str = ".") -> list[str] | None:
    """Files that are not as in a commit; None where this checkout does not have it.

    Args:
        root: a folder in the checkout.
        commit: of then.
        where: a path to look under.
    """
    text = git(root, "diff", "--name-only", "-z", "--no-renames", commit, "--", where)
    return None if text is None else sorted(path for path in text.split("\0") if path)


def made_by_stages(root: Path) -> list[str]:
    """dvc.lock, and patterns of all that the stages of dvc.yaml write; what depends on a parameter or on the item of a
    matrix is a *.

    Args:
        root: that dvc.yaml lies in, if there is one.
    """
    import yaml

    from posttrain.config.yaml_files import FastLoader

    try:
        stages = yaml.load((root / "dvc.yaml").read_text(encoding="utf-8"), FastLoader)["stages"].values()
        entries = [
            entry
            for stage in stages
            for kind in ("outs", "metrics", "plots")
            for entry in stage.get("do", stage).get(kind, [])
        ]
    except (OSError, yaml.YAMLError, LookupError, TypeError, AttributeError):
        return ["dvc.lock"]
    paths = [next(iter(entry)) if isinstance(entry, dict) else str(entry) for entry in entries]
    patterns = [re.sub(r"\$\{.*?\}", "*", path) for path in paths]
    return ["dvc.lock", *patterns, *(f"{pattern}/*" for pattern in patterns)]


def _digest(root: Path, changed: list[str], untracked: list[str]) -> str | None:
    """sha256 over what is in the tree and in no commit: two runs with the same one had the same tree."""
    diff = git(root, "diff", "--binary", "--no-ext-diff", "--no-textconv", "HEAD", "--", *changed) if changed else ""
    if diff is None:
        return None
    digest = hashlib.sha256(diff.encode())
    for path in untracked:
        try:
            digest.update(f"{path} {hashlib.sha256((root / path).read_bytes()).hexdigest()}\n".encode())
        except OSError:  # gone since
            continue
    return digest.hexdigest()
