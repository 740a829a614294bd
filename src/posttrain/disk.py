"""What a disk is asked for: to keep what was written, and to have room for more."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from posttrain.errors import UserError

PAGE = "troubleshooting.md#resume"
_WANT_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_OF_THE_DISK = {errno.EROFS, errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.EACCES, errno.EPERM} | _WANT_ROOM
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
        for_checkpoint = f"a checkpoint takes about {in_words(checkpoint)} and " if checkpoint else ""
        raise UserError(
            f"{run} has room for {in_words(free)}; {for_checkpoint}the model {in_words(model)}: make room, or name a "
            "folder on another disk",
            PAGE,
        )


def in_words(size: float) -> str:
    """A number of bytes, in MiB or GiB."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def is_of_the_disk(error: Exception) -> bool:
    """Whether writing failed below the libraries: safetensors and torch have errors of their own for that."""
    if isinstance(error, OSError):
        return error.errno in _OF_THE_DISK
    name, text = type(error).__name__, str(error)
    return (name == "SafetensorError" and "I/O error" in text) or (
        isinstance(error, RuntimeError) and any(word in text for word in _OF_TORCH_WRITING)
    )


def reason_of(error: Exception, folder: Path) -> str:
    """In words, why a folder could not be written to, and what is to be done."""
    free = shutil.disk_usage(folder).free
    if isinstance(error, OSError) and error.strerror:
        text, is_room = error.strerror, error.errno in _WANT_ROOM
    elif free < 2**20:  # of torch's errors nobody could tell
        text, is_room = os.strerror(errno.ENOSPC), True
    else:
        text, is_room = f"{str(error).strip().splitlines()[0]} ({in_words(free)} are free there)", True
    return f"{text}. {'Make room, or take another disk' if is_room else 'See that it can be written to'}"
