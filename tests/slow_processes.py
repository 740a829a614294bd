"""Processes that keep one another waiting for longer than any collective call would, or of which one alone has a loss
that is not finite; all forked from this one, so that torch is imported once.

python slow_processes.py FOLDER: commands.json there is a list of [port, words…], run at the same time, each in two
processes of which one takes SECONDS longer, and collective calls give up after TIMEOUT; ports.json are ports for the
functions here, whose results are written, and faulty.json the words of a command for one of them.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import spoil
from forks import load_all

from posttrain import reference, training, waiting
from posttrain.cli import main

TIMEOUT, SECONDS = 4.0, 5.5  # of a collective call, and of what one of the processes does meanwhile
Store = Any


def fork(port: int, rank: int, size: int, run: Callable[[], int]) -> int:
    """Starts one of several processes that are to meet at a port."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in numbers.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true", "SECONDS": str(SECONDS)}
        code = run()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def slow(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def slowed(*args: Any, **kwargs: Any) -> Any:
        time.sleep(SECONDS)
        return function(*args, **kwargs)

    return slowed


def command(words: list[str]) -> int:
    """posttrain, whose rows the first process prepares slowly, and whose log-probs of a reference whoever computes
    them."""
    limit = datetime.timedelta(seconds=TIMEOUT)  # which on CPUs transformers does not set, whatever --ddp_timeout says
    join = functools.partial(torch.distributed.init_process_group, timeout=limit)
    torch.distributed.init_process_group = join  # type: ignore[assignment]
    if os.environ["RANK"] == "0":
        training.prepare = slow(training.prepare)
    reference._store_logprobs = slow(reference._store_logprobs)
    return main(words)


def join(seconds: float) -> Store:
    limit = datetime.timedelta(seconds=seconds)
    torch.distributed.init_process_group("gloo", timeout=limit)
    return torch.distributed.distributed_c10d._get_default_store()


def late(folder: Path) -> int:
    """One of three comes later than collective calls wait; then they meet often."""
    store, rank = join(1.0), torch.distributed.get_rank()
    if rank == 1:
        time.sleep(2.5)
    waiting._TELL_AFTER = 1.0
    told: list[str] = []
    waiting.logger.info = lambda text, *values: told.append(text % values)  # type: ignore[method-assign, assignment]
    waiting.wait_for_all("a nap")
    number = torch.tensor([rank])
    torch.distributed.all_reduce(number)
    before = store.num_keys()
    for _ in range(200):
        waiting.wait_for_all("a meeting")
    found = {"sum": number.item(), "grown": store.num_keys() - before, "told": told}
    torch.distributed.barrier()
    (folder / f"late-{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    return 0


def gone(folder: Path) -> int:
    """One of two dies, and the store with it."""
    join(30.0)
    if torch.distributed.get_rank() == 0:
        time.sleep(0.5)
        os._exit(0)
    try:
        waiting.wait_for_all("a test")
    except RuntimeError as error:
        (folder / "gone.txt").write_text(str(error), encoding="utf-8")
    return 0


def faulty(folder: Path) -> int:
    """The loss of the second of two is not finite in three steps."""
    spoil(pytest.MonkeyPatch(), [2, 3, 4], rank=1)
    said = folder / f"faulty-{os.environ['RANK']}.txt"
    os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 2)
    code = main(json.loads((folder / "faulty.json").read_text(encoding="utf-8")))
    print(f"exit code {code}", file=sys.stderr)
    return 0


def run_all(folder: Path) -> int:
    load_all()
    children = []
    for port, *words in json.loads((folder / "commands.json").read_text(encoding="utf-8")):
        children += [fork(port, rank, 2, functools.partial(command, words)) for rank in range(2)]
    ports = json.loads((folder / "ports.json").read_text(encoding="utf-8"))
    for port, function, size in zip(ports, (late, gone, faulty), (3, 2, 2), strict=True):
        children += [fork(port, rank, size, functools.partial(function, folder)) for rank in range(size)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return next((code for code in codes if code), 0)  # also of one that was killed


if __name__ == "__main__":
    sys.exit(run_all(Path(sys.argv[1])))
