"""Waiting for the other processes, however long it takes.

A collective call gives up after `--ddp_timeout`, since it cannot tell a process that works from one that hangs. So
where processes may come apart by more than a step (rows that one of them prepares, completions and their rewards, files
that one of them writes), they first meet here, in the store by which torch has brought them together, and whatever call
comes next finds all of them there. A process that dies does not keep the others waiting: the launcher ends them.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import time
from collections.abc import Iterator

logger = logging.getLogger(__name__)

_KEY = "posttrain/waiting"
_LOOK_AT_LEAST, _LOOK_AT_MOST = 0.0002, 0.1  # seconds between two looks whether all are here
_TELL_AFTER = 60.0  # seconds; then after twice as many, and so on
_numbers = itertools.count()  # of the meetings; all processes have the same ones, in the same order


def wait_for_all(doing: str) -> None:
    """Returns when all processes have called it; at once in one that is alone.

    Args:
        doing: what others may still be at, in words, for the user who waits.

    Raises:
        RuntimeError: the store is gone, and with it the process that kept it.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:  # before torch is loaded, which some that prepare data never do
        return
    import torch

    if not torch.distributed.is_initialized():
        return
    store = torch.distributed.distributed_c10d._get_default_store()
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    number = next(_numbers)
    here = f"{_KEY}/{number}"
    try:
        store.set(f"{_KEY}/of/{rank}", str(number))
        if store.add(here, 1) == size:
            store.set(f"{here}/all", "here")
        began, tell_after = time.monotonic(), _TELL_AFTER
        while not store.check([f"{here}/all"]):
            waited = time.monotonic() - began
            if waited > tell_after:
                tell_after *= 2
                logger.info("Waiting for process %s since %.0f s (%s).", _missing(store, number, size), waited, doing)
            time.sleep(min(_LOOK_AT_MOST, max(_LOOK_AT_LEAST, waited / 20)))
        if rank == 0:  # whoever is here has left the meeting before
            store.delete_key(f"{_KEY}/{number - 1}")
            store.delete_key(f"{_KEY}/{number - 1}/all")
    except torch.distributed.DistNetworkError as error:
        raise RuntimeError(f"Connection closed by peer: the store of all processes is gone ({doing})") from error


@contextlib.contextmanager
def first_here(doing: str) -> Iterator[None]:
    """The first process of each machine goes through the block alone; the others wait, and find what it has left.

    Args:
        doing: as for `wait_for_all`.
    """
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    if not is_first:
        wait_for_all(doing)
    yield
    if is_first:
        wait_for_all(doing)


def _missing(store: object, number: int, size: int) -> str:
    """The processes that have not come to a meeting."""
    last = {rank: f"{_KEY}/of/{rank}" for rank in range(size)}
    late = [rank for rank, key in last.items() if not store.check([key]) or int(store.get(key)) < number]  # type: ignore[attr-defined]
    return ", ".join(map(str, late))
