"""Folders that are complete or absent: written beside, hashed, brought to the disk, renamed.

A folder's manifest holds the size and sha256 of each of its files, and is written last. So a folder is whole where its
manifest holds, whatever happened while it was written or since; and where something was left half done, the next run
finishes or removes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from posttrain.disk import is_of_the_disk, reason_of, to_disk, write_text
from posttrain.errors import RunFailed, UserError
from posttrain.machine import num_cores

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
PAGE = "troubleshooting.md#resume"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
SAVING, REMOVING, DAMAGED, LATER = ".saving-", ".removing-", "damaged-", "later-"
LOCK = ".lock"
PROVENANCE = "provenance.json"
# A card may be edited; a provenance differs from machine to machine, and holds the manifest's hashes itself.
_FOR_PEOPLE = ("README.md", PROVENANCE)


# -- whole folders


def write_manifest(folder: Path) -> None:
    """Writes the sizes and hashes of all files of a folder, and brings the whole folder to the disk.

    Args:
        folder: complete but for its manifest.
    """
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    hashed = {name: path for name, path in files.items() if name not in _FOR_PEOPLE}
    about = {
        name: {"sha256": sha256, "size": hashed[name].stat().st_size}
        for name, sha256 in zip(hashed, sha256_of(hashed.values()), strict=True)
    }
    for path in [*files.values(), *(path for path in folder.rglob("*") if path.is_dir())]:
        to_disk(path)
    write_text(folder / MANIFEST, json.dumps({"files": about}, indent=2) + "\n")


def what_is_wrong(folder: Path) -> str | None:
    """What a folder lacks of what its manifest says; None where it is whole.

    Args:
        folder: with a manifest; one without is not whole.
    """
    try:
        files: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        expected = {name: (int(about["size"]), str(about["sha256"])) for name, about in files.items()}
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"its {MANIFEST} cannot be read"
    for name, (size, _) in expected.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes in place of {size:,}"
    found = sha256_of(folder / name for name in expected)
    for (name, (_, sha256)), now in zip(expected.items(), found, strict=True):
        if now != sha256:
            return f"{name} is not as it was written"
    return None


def check_model_folder(name: str, folder: Path) -> None:
    """Checks a model that posttrain has saved; of others there is no manifest, and nothing to check.

    Args:
        name: of the flag, for the message.
        folder: of the model.

    Raises:
        UserError: a file is not the one that was saved.
    """
    wrong = what_is_wrong(folder) if (folder / MANIFEST).exists() else None
    if wrong is not None:
        raise UserError(
            f"{name}: {folder} is not whole: {wrong}. Train or copy it again; if the change was meant, remove "
            f"{folder / MANIFEST}",
            PAGE,
        )


def move_into_place(beside: Path, folder: Path) -> None:
    """Fills a folder with a finished model that was written beside it, a rename a file: the manifest first, so that a
    mixture of two models is known as such. Files of an earlier model that this one did not write again are taken away.

    Args:
        beside: on the same file system, with its manifest; empty and gone afterwards.
        folder: may hold other things, checkpoints among them.
    """
    names = sorted((path.name for path in beside.iterdir()), key=lambda name: (name != MANIFEST, name))
    for pattern in ("*.safetensors", "*.safetensors.index.json", "adapter_config.json"):
        for stale in folder.glob(pattern):
            if stale.name not in names:
                stale.unlink()
    for name in names:
        if (beside / name).is_dir() and (folder / name).is_dir():  # a folder's name is free once it is empty
            remove(folder / name)
        os.replace(beside / name, folder / name)
    beside.rmdir()
    to_disk(folder)


# -- checkpoints of a run


def step_of(folder: Path) -> int:
    """The step of a checkpoint's folder; -1 for what is none."""
    found = _CHECKPOINT.fullmatch(folder.name)
    return int(found[1]) if found else -1


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, by their step."""
    found = [path for path in run.glob("checkpoint-*") if step_of(path) >= 0 and path.is_dir()]
    return sorted(found, key=step_of)


def saving_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is written before it gets its name."""
    return run / f"{SAVING}checkpoint-{step}"


def publish(beside: Path) -> Path:
    """Gives a checkpoint that is complete its name.

    Args:
        beside: from `saving_folder`, with its manifest.

    Returns:
        The checkpoint.
    """
    folder = beside.with_name(beside.name.removeprefix(SAVING))
    if folder.exists():
        remove(folder)
    os.rename(beside, folder)
    to_disk(folder.parent)
    return folder


def newest_whole(run: Path) -> Path | None:
    """The newest checkpoint that is whole. Damaged ones before it are named and kept aside.

    Args:
        run: the run's folder; no other process writes in it.
    """
    for folder in reversed(checkpoints(run)):
        wrong = what_is_wrong(folder)
        if wrong is None:
            return folder
        aside = set_aside(folder)
        what_then = "the one before it is looked at" if checkpoints(run) else "there is no other: training starts anew"
        logger.warning("%s is damaged: %s. It is kept as %s; %s.", folder, wrong, aside.name, what_then)
    return None


def set_aside(folder: Path, reason: str = DAMAGED) -> Path:
    """Renames a checkpoint so that it is no longer one of its run; its files stay.

    Args:
        folder: the checkpoint.
        reason: begins its new name.
    """
    number = 0
    while True:
        aside = folder.with_name(f"{reason}{folder.name}" + (f"-{number}" if number else ""))
        if not aside.exists():
            os.rename(folder, aside)
            return aside
        number += 1


def remove(folder: Path) -> None:
    """Removes a folder: first its name, so that no half of it is ever taken for a whole one. Another machine that
    shares the disk may be about it, too."""
    leaving = folder.with_name(f"{REMOVING}{folder.name}")
    shutil.rmtree(leaving, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, leaving)
    shutil.rmtree(leaving, ignore_errors=True)


def tidy(run: Path) -> None:
    """Ends what an earlier process of this run had begun: a complete checkpoint gets its name, the rest is removed."""
    for beside in run.glob(f"{SAVING}checkpoint-*"):
        folder = beside.with_name(beside.name.removeprefix(SAVING))
        if not folder.exists() and what_is_wrong(beside) is None:
            publish(beside)
        else:
            shutil.rmtree(beside, ignore_errors=True)
    for leaving in run.glob(f"{REMOVING}*"):
        shutil.rmtree(leaving, ignore_errors=True)


def rotate(run: Path, limit: int | None, keep: Collection[int | None]) -> None:
    """Removes the oldest checkpoints.

    Args:
        run: the run's folder.
        limit: how many stay; None or 0: all.
        keep: steps of those that stay in any case, and count.
    """
    if not limit:
        return
    found = checkpoints(run)
    others = [folder for folder in found if step_of(folder) not in keep]
    room = max(0, limit - (len(found) - len(others)))
    for folder in others[: len(others) - room]:
        remove(folder)


@contextlib.contextmanager
def only_run_in(folder: Path, name: str = "output_dir") -> Iterator[None]:
    """For the time of a run: nobody else runs in this folder. The lock goes with the process, however it ends.

    Args:
        folder: made if need be.
        name: of the flag that names it.

    Raises:
        UserError: somebody does.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / LOCK, timeout=0)
        lock.acquire()
    except Timeout:
        raise UserError(
            f"another run is at work in {folder}; wait for it to end, stop it, or take another --{name}", PAGE
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def room_to_write(what: str, run: Path, beside: Path) -> Iterator[None]:
    """For the time of writing: a disk that is full or gone is told as such, with what is kept.

    Args:
        what: is written.
        run: the run's folder, whose checkpoints are kept.
        beside: where it is written; gone where that fails, which makes room.

    Raises:
        RunFailed: it cannot be written.
    """
    try:
        yield
    except Exception as error:
        shutil.rmtree(beside, ignore_errors=True)
        if not is_of_the_disk(error):
            raise
        kept = checkpoints(run)
        way_on = f"goes on from {kept[-1]}, which is whole" if kept else "begins anew, since there is no checkpoint"
        raise RunFailed(
            f"{what} cannot be written: {reason_of(error, run)}; the same command then {way_on}", PAGE
        ) from error


def sha256_of(paths: Iterable[Path]) -> list[str]:
    """The hashes of files, several at a time."""
    with ThreadPoolExecutor(min(8, num_cores())) as threads:  # hashlib lets others run meanwhile
        return list(threads.map(_sha256, paths))


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
