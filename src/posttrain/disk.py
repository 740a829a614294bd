"""What a disk is asked for: to keep what was written, and to have room for more."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from posttrain.errors import UserError

PAGE = "troubleshooting.md#resume"
_OF_THE_DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO),
    *(errno.EACCES, errno.EPERM),
}
_OF_TORCH_WRITING = ("PytorchStreamWriter", "inline_container", "iostream error", "file write failed")


def to_disk(path: Path) -> None:
    """Waits until a file's content, or the names in a folder, would survive a power cut."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def write_text(path: Path, text: str) -> None:
    """Writes a small file that is there in full or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.saving")
    beside.write_text(text, encoding="utf-8")
    to_disk(beside)
    os.replace(beside, path)
    to_disk(path.parent)


def check_room(run: Path, checkpoint: int, model: int) -> None:
    """Checks that there is room for a checkpoint and the finished model before anything is trained.

    Args:
        run: the run's folder.
        checkpoint, model: what each takes, in bytes.

    Raises:
        UserError: there is not.
    """
    free = shutil.disk_usage(run).free
    if free < checkpoint + model:
        raise UserError(
            f"{run} has room for {free / 2**30:,.1f} GiB; a checkpoint takes about {checkpoint / 2**30:,.1f} GiB and "
            f"the model {model / 2**30:,.1f} GiB: make room, or name a folder on another disk",
            PAGE,
        )


def is_of_the_disk(error: Exception) -> bool:
    """Whether writing failed below the libraries: safetensors and torch have errors of their own for that."""
    if isinstance(error, OSError):
        return error.errno in _OF_THE_DISK
    name, text = type(error).__name__, str(error)
    return (name == "SafetensorError" and "I/O error" in text) or (
        isinstance(error, RuntimeError) and any(word in text for word in _OF_TORCH_WRITING)
    )


def reason_of(error: Exception, folder: Path) -> str:
    """In words, why a folder could not be written to."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    free = shutil.disk_usage(folder).free / 2**20  # of torch's errors nobody could tell
    return f"{str(error).strip().splitlines()[0]} ({free:,.0f} MiB are free there)"
