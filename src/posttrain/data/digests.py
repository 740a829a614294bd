"""What data files are known by: SHA-256 of their bytes, which of large files is remembered from one start to the next.

A remembered hash is believed while device, inode, size, and the times of the last change of content and of inode are
those of the file that was read. Nobody can set the last of these times, so a file that was edited, replaced or given
another date is read again. What is trusted is the clock of the file system: a hash is not remembered of a file that
was changed within `_SETTLED` seconds before it was read.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from posttrain.data.files import check_regular
from posttrain.data.progress import bar
from posttrain.errors import UserError

LARGE = 2**26  # bytes; what is smaller is read in a fraction of a second
_SETTLED = 5.0
_AT_ONCE = 2**22
_folder: ContextVar[Path | None] = ContextVar("folder of remembered digests", default=None)


@contextlib.contextmanager
def remembered_in(folder: Path) -> Iterator[None]:
    """For the time in which hashes of large files are looked up in a folder, and kept there."""
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


def file_digests(paths: list[Path] | tuple[Path, ...]) -> list[str]:
    """SHA-256 of the content of each file, in hexadecimal.

    Raises:
        UserError: one is not there, or cannot be read.
    """
    digests = []
    for path in paths:
        try:
            check_regular(path)
            digests.append(_digest(path))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    return digests


def _digest(path: Path) -> str:
    folder, size = _folder.get(), path.stat().st_size
    if folder is None or size < LARGE:
        return _read(path, size)
    from filelock import FileLock

    found = _remembered(folder, path)
    if found is not None:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{_name(path)}.lock"):  # of several processes one reads
            return _remembered(folder, path) or _read_and_remember(folder, path)
    except PermissionError:  # somebody else's cache
        return _read(path, size)


def _read_and_remember(folder: Path, path: Path) -> str:
    before, start = _stamp(path), time.time()
    digest = _read(path, path.stat().st_size)
    changed = max(before["changed"], before["inode_changed"]) / 1e9
    if _stamp(path) == before and changed < start - _SETTLED:
        beside = folder / f".{_name(path)}.{os.getpid()}"
        beside.write_text(json.dumps({"stamp": before, "sha256": digest, "path": str(path)}), encoding="utf-8")
        beside.replace(folder / f"{_name(path)}.json")
    return digest


def _remembered(folder: Path, path: Path) -> str | None:
    try:
        note = json.loads((folder / f"{_name(path)}.json").read_text(encoding="utf-8"))
        return str(note["sha256"]) if note["stamp"] == _stamp(path) else None
    except (OSError, ValueError, LookupError, TypeError):  # there is none, or what is there is none
        return None


def _name(path: Path) -> str:
    state = path.stat()
    return f"{state.st_dev:x}-{state.st_ino:x}"


def _stamp(path: Path) -> dict[str, int]:
    state = path.stat()
    return {
        "device": state.st_dev,
        "inode": state.st_ino,
        "size": state.st_size,
        "changed": state.st_mtime_ns,
        "inode_changed": state.st_ctime_ns,
    }


def _read(path: Path, size: int) -> str:
    digest, buffer = hashlib.sha256(), bytearray(max(1, min(size, _AT_ONCE)))
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file, bar(f"Reading {path}", size, "B") as shown:
        while number := file.readinto(buffer):
            digest.update(view[:number])
            shown.update(number)
    return digest.hexdigest()
