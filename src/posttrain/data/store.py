"""Tokenised rows on disk: an Arrow file that is mapped into memory, and beside it what is to be said about it.

An entry of the cache is a folder named by the hash of all that its contents depend on. It is written beside and
renamed, under a lock, so that of several processes one does the work and no half of it is ever seen. What a process
that was killed has left beside is gone on from, as far as its journal says.
"""

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from posttrain.data.journal import FILE as JOURNAL
from posttrain.data.progress import bar, is_first_process
from posttrain.errors import RunFailed, UserError

logger = logging.getLogger(__name__)

_PATIENCE, _FIRST_BEGINS_WITHIN, _LOOK = 2.0, 10.0, 0.1  # seconds
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"  # Arrow, IPC streaming format
ROWS, ABOUT = "rows.arrow", "about.json"
IDS = pa.list_(pa.int32())
MASK = pa.list_(pa.int8())
DOCUMENTS = pa.schema({"input_ids": IDS, "loss_mask": MASK, "place": pa.string()})
PACKED = pa.schema({"input_ids": IDS, "loss_mask": MASK, "lengths": IDS, "place": pa.string()})
PAIRS = pa.schema(
    {
        "prompt_ids": IDS,
        "chosen_ids": IDS,
        "chosen_mask": MASK,
        "rejected_ids": IDS,
        "rejected_mask": MASK,
        "row": pa.int64(),
        "place": pa.string(),
        "margin": pa.float32(),
    }
)
WHOLE_PAIRS = pa.schema(
    {
        "prompt_ids": IDS,
        "chosen_ids": IDS,
        "rejected_ids": IDS,
        "row": pa.int64(),
        "place": pa.string(),
        "margin": pa.float32(),
    }
)
PROMPTS = pa.schema(
    {"prompt_ids": IDS, "row": pa.int64(), "place": pa.string(), "prompt": pa.string(), "columns": pa.string()}
)


def cached_folder(root: Path, key: str, build: Callable[[Path], None]) -> Path:
    """The entry of a key, built if it is not there.

    Args:
        root: folder of the cache; made if need be.
        key: hash of all that the contents depend on.
        build: fills the (empty) folder it is given.

    Raises:
        UserError: the cache is not writable.
    """
    entry, beside = root / key, root / f"{key}.part"
    if entry.is_dir():
        _note_use(entry)
        return entry
    try:
        root.mkdir(parents=True, exist_ok=True)
        _let_the_first_begin(entry, beside)
        with _alone(root / f"{key}.lock", beside):
            if not entry.is_dir():
                _fill(beside, build)
                beside.rename(entry)
    except OSError as error:
        raise UserError(
            f"--cache_dir {root}: cannot be written ({error.strerror or error}); name another place"
        ) from error
    return entry


def _fill(beside: Path, build: Callable[[Path], None]) -> None:
    if not (beside / JOURNAL).is_file():
        shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(exist_ok=True)
    try:
        build(beside)
    except RunFailed:
        raise  # the same command goes on
    except Exception:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _note_use(entry: Path) -> None:
    """The time of a folder says when it was used last."""
    with contextlib.suppress(OSError):  # somebody else's
        os.utime(entry)


def _let_the_first_begin(entry: Path, beside: Path) -> None:
    """Of the processes of a run on one machine the first one does the work, and so shows how far it is."""
    end = time.monotonic() + _FIRST_BEGINS_WITHIN
    while not is_first_process() and time.monotonic() < end and not (entry.is_dir() or beside.is_dir()):
        time.sleep(_LOOK)


@contextlib.contextmanager
def _alone(file: Path, beside: Path) -> Iterator[None]:
    """For the time in which no other process does this work; waits for another one, however long that takes."""
    from filelock import FileLock, Timeout

    lock = FileLock(file)
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        if is_first_process():
            logger.info("another process is preparing these rows (%s); waiting for it", beside)
        with bar("Waiting for another process, which has written", None, "B") as shown:
            while not _acquired(lock):
                shown.n = sum(path.stat().st_size for path in beside.glob("*") if path.is_file())
                shown.refresh()
    try:
        yield
    finally:
        lock.release()


def _acquired(lock: Any) -> bool:
    from filelock import Timeout

    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        return False
    return True


def write_rows(
    path: Path,
    schema: pa.Schema,
    batches: Iterable[dict[str, list[Any]]],
    written: int = 0,
    told: Callable[[BinaryIO], None] = lambda file: None,
) -> None:
    """Write batches of rows, given as columns of numpy arrays (or of numbers), as an Arrow stream.

    Args:
        path: of the file.
        schema: of the rows.
        batches: of them.
        written: bytes of the file that are to stay, which end with a batch; 0 = a new file.
        told: is given the file after every batch.
    """
    with open(path, "r+b" if written else "wb") as file:
        if written:
            file.truncate(written)
            file.seek(written)
        else:
            file.write(schema.serialize())
        for columns in batches:
            arrays = [_array(columns[field.name], field.type) for field in schema]
            file.write(pa.record_batch(arrays, schema=schema).serialize())
            told(file)
        file.write(_END_OF_STREAM)


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    if not pa.types.is_list(kind):
        return pa.array(values, kind)
    offsets = np.zeros(len(values) + 1, dtype=np.int32)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    return pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(values), kind.value_type), type=kind)


def open_rows(path: Path, fingerprint: str) -> Any:
    """An Arrow stream as a `datasets.Dataset`, mapped into memory, its fingerprint being that of its contents."""
    from datasets import Dataset
    from datasets.table import MemoryMappedTable

    return Dataset(MemoryMappedTable.from_file(str(path)), fingerprint=fingerprint)


def write_about(folder: Path, about: dict[str, Any]) -> None:
    """Note what is to be said about an entry."""
    (folder / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")


def read_about(folder: Path) -> dict[str, Any]:
    """What write_about noted."""
    about: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    return about
