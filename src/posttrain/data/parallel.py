"""Work on batches of rows in several processes, its results in the order of the batches: those of one process, to the
byte, whatever the number.

The processes are forked off (where that is not the system's way, started anew), so that they have the tokenizer at
once. They let signals pass, end with the process that has started them, and use no threads of the tokenizer's own:
those are for one process that does everything.
"""

import contextlib
import math
import multiprocessing
import os
import pickle
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import accumulate, chain
from typing import Any

import numpy as np

from posttrain.data.readers import Row
from posttrain.data.tokenised import Tokenised
from posttrain.errors import RunFailed
from posttrain.machine import num_cores
from posttrain.stop import end_with_parent, held_back, outlive_signals

Batch = list[Row]
Tokenise = Callable[[Batch, int], Tokenised]  # rows, and the index of the first one

MOST = 16  # processes, unless more are asked for: reading the rows and writing the tokens keeps a process busy then
MOST_BESIDE = 4  # of those that work beside training
_ROWS_ALONE = 8192  # tokenised in some seconds by one process
_UNDER_WAY = 2  # batches a process
_THREADS = "TOKENIZERS_PARALLELISM"


class Workers:
    """Processes that tokenise.

    Args:
        tokenise: what they do.
        number: of them.
    """

    def __init__(self, tokenise: Tokenise, number: int):
        self.number, self._tokenise = number, tokenise
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self._executor = ProcessPoolExecutor(number, context, _begin, (tokenise, os.getpid()))
        before = set(multiprocessing.active_children())
        with held_back(), _no_threads(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, which is provided for
            for _ in range(number):  # one is started with each piece of work, where they do not all come at once
                self._executor.submit(int)
        self._processes = set(multiprocessing.active_children()) - before

    def begin(self, batch: Batch, first_row: int) -> Callable[[], Tokenised]:
        """Has a batch worked on.

        Args:
            batch: rows.
            first_row: index of the first one.

        Returns:
            Waits for the result.
        """
        try:
            packed = pickle.dumps(batch, pickle.HIGHEST_PROTOCOL)
        except Exception:  # a picture, say, in a column that nobody asks for: it may be of any class
            return lambda: self._tokenise(batch, first_row)
        try:
            future = self._executor.submit(_work, packed, first_row)
        except BrokenProcessPool as error:
            raise self._failed() from error
        return lambda: self._result(future)

    def _result(self, future: Future[Any]) -> Tokenised:
        try:
            return _unpacked(future.result())
        except BrokenProcessPool as error:
            raise self._failed() from error

    def _failed(self) -> RunFailed:
        codes = self._exit_codes()
        how = f"by signal {-codes[0]}" if codes and codes[0] < 0 else f"with exit code {codes[0]}" if codes else "early"
        return RunFailed(
            f"one of {self.number} processes that tokenise has ended {how}; most likely this machine's memory ran out: "
            f"--dataset_num_proc {max(1, self.number // 2)} takes fewer, and the same command goes on from "
            "there",
            "large_data.md#memory",
        )

    def _exit_codes(self) -> list[int]:
        """Of processes that have failed, those first that the pool has not ended because of the others. It waits for
        them in a thread of its own, so that a code may be known a moment later."""
        until = time.monotonic() + 1
        while not (codes := [process.exitcode for process in self._processes if process.exitcode]):
            if time.monotonic() > until:
                break
            time.sleep(0.01)
        return sorted(codes, key=lambda code: code == -signal.SIGTERM)

    def close(self) -> None:
        """Ends them; what is under way is lost."""
        for process in self._processes:
            process.kill()
        self._executor.shutdown(cancel_futures=True)


def in_order(
    batches: Iterator[Batch], begin: Callable[[Batch], Callable[[], Tokenised]], ahead: Callable[[], int]
) -> Iterator[tuple[Batch, Callable[[], Tokenised]]]:
    """Batches, each with what gives its result.

    Args:
        batches: may end in an error, which is raised after all batches before it.
        begin: has one worked on.
        ahead: how many may be under way at a time.
    """
    under_way: deque[tuple[Batch, Callable[[], Tokenised]]] = deque()
    failure: Exception | None = None
    is_over = False
    while True:
        while not is_over and len(under_way) < ahead():
            try:
                batch = next(batches, None)
            except Exception as error:
                batch, failure = None, error
            is_over = batch is None
            if batch is not None:
                under_way.append((batch, begin(batch)))
        if not under_way:
            break
        yield under_way.popleft()
    if failure is not None:
        raise failure


class Team:
    """Tokenises batches: the first ones here, and those after them by Workers. A small data set needs none.

    Args:
        tokenise: what is done.
        number: of processes.
        rows_alone: so many rows before they are started.
    """

    def __init__(self, tokenise: Tokenise, number: int, rows_alone: float):
        self._tokenise, self._number, self._rows_alone = tokenise, number, rows_alone
        self._rows = 0
        self._workers: Workers | None = None

    def start(self) -> None:
        """Starts the processes, which end when the thread that does this ends."""
        if self._workers is None:
            self._workers = Workers(self._tokenise, self._number)

    def begin(self, batch: Batch, first_row: int) -> Callable[[], Tokenised]:
        """As of Workers."""
        if self._rows >= self._rows_alone:
            self.start()
        self._rows += len(batch)
        if self._workers is None:
            return lambda: self._tokenise(batch, first_row)
        return self._workers.begin(batch, first_row)

    def ahead(self) -> int:
        """Batches that may be under way: one, where nobody else works on them."""
        return 1 if self._workers is None else _UNDER_WAY * self._number

    def close(self) -> None:
        """Ends what was started."""
        if self._workers is not None:
            self._workers.close()


def team_of_file(tokenise: Tokenise, asked: int | None) -> Team:
    """For rows that are all tokenised before they are used.

    Args:
        tokenise: what is done.
        asked: number of processes; 1 = all is done here. None = one for each core that this process may use, up to
            MOST, once there are more rows than one process tokenises in some seconds.
    """
    number = asked or min(num_cores(), MOST)
    return Team(tokenise, number, math.inf if number == 1 else 0 if asked else _ROWS_ALONE)


def team_of_stream(tokenise: Tokenise, asked: int | None, rows_alone: int) -> Team:
    """For rows that are tokenised while others are trained on, by each process for itself.

    Args:
        tokenise: what is done.
        asked: number of processes; None = as many as this process has cores, up to MOST_BESIDE.
        rows_alone: of the stream's beginning.
    """
    share = num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return Team(tokenise, asked or max(1, min(share, MOST_BESIDE)), rows_alone)


# -- in the other processes

_tokenise: Tokenise | None = None


def _begin(tokenise: Tokenise, parent: int) -> None:
    global _tokenise
    os.environ[_THREADS] = "false"
    outlive_signals()
    end_with_parent(9)
    if os.getppid() != parent:  # it has ended meanwhile
        os._exit(1)
    _tokenise = tokenise


def _work(packed: bytes, first_row: int) -> tuple[Tokenised, dict[str, Any]]:
    assert _tokenise is not None
    return _packed(_tokenise(pickle.loads(packed), first_row))


def _packed(result: Tokenised) -> tuple[Tokenised, dict[str, Any]]:
    """A result, and apart from it its columns of arrays, each as one array and the lengths: many small ones take long
    to be sent."""
    arrays = {name: of for name, of in result.columns.items() if of and isinstance(of[0], np.ndarray)}
    for name in arrays:
        result.columns[name] = []
    return result, {name: (np.concatenate(of), list(map(len, of))) for name, of in arrays.items()}


def _unpacked(sent: tuple[Tokenised, dict[str, Any]]) -> Tokenised:
    result, arrays = sent
    for name, (values, lengths) in arrays.items():
        ends = list(accumulate(lengths))
        result.columns[name] = [values[a:b] for a, b in zip(chain([0], ends), ends, strict=False)]
    return result


@contextlib.contextmanager
def _no_threads() -> Iterator[None]:
    """For the time of forking: tokenizers would warn of its threads, which are not there on the other side."""
    before = os.environ.get(_THREADS)
    os.environ[_THREADS] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_THREADS]
        else:
            os.environ[_THREADS] = before
