"""A callback of transformers by which a run waits after each of its steps until others are asked for, so that the
steps of several runs can be measured in turn. What asks is in_turn.py.

It needs nothing of posttrain: the peer's runs have it, too.
"""

from __future__ import annotations

import json
import resource
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import distributed
from transformers import TrainerCallback

from benchmarks.step_profile import StepProfile

_LOGGED = {"loss": "losses", "grad_norm": "grad_norms", "num_tokens": "num_tokens"}


def peak_memory_bytes() -> int:
    """The most that this process has held: of a GPU tensors, else resident memory, libraries included."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss survives exec and may tell of the parent
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


class TurnTaking(TrainerCallback):
    """Reports, and waits, when training is about to begin, and after the steps that were asked for; -1 asks for one
    under torch's profiler. Every step must be logged: a step lasts from one log line to the next, what is sampled, read
    and logged for it included.

    Args:
        address: of the socket on which steps are asked for.
        also: what else is to be told of the steps since the last report.
    """

    def __init__(self, address: str, also: Callable[[], dict[str, Any]] = dict) -> None:
        self._address, self._also = address, also
        self._channel: Any = None
        self._wanted = 0
        self._idle = 0.0
        self._profile: StepProfile | None = None
        self._begin()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            with socket.socket(socket.AF_UNIX) as connection:  # it stays open for as long as the channel does
                connection.connect(self._address)
                self._channel = connection.makefile("rw", encoding="utf-8")
        process = psutil.Process()
        start = {"start": time.time() - process.create_time(), "start_processor": sum(process.cpu_times()[:2])}
        self._wait(start | {"before": process.memory_info().rss})

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" not in logs:  # the summary of a run that has ended
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now, processor = time.perf_counter(), time.process_time()
        self._seconds.append(now - self._clock)
        self._processor.append(processor - self._of_processor)
        for name, values in self._logged.items():
            values.append(logs.get(name))
        if len(self._seconds) == self._wanted:
            steps = {"seconds": self._seconds, "processor": self._processor}
            logged = {_LOGGED[name]: values for name, values in self._logged.items()}
            profiled = {} if self._profile is None else {"profile": self._profile.seconds()}
            self._profile = None
            told = {"peak": peak_memory_bytes(), "idle": self._idle}
            self._wait(steps | logged | self._also() | told | profiled)
        self._clock, self._of_processor = time.perf_counter(), time.process_time()

    def _begin(self) -> None:
        self._seconds: list[float] = []
        self._processor: list[float] = []
        self._logged: dict[str, list[Any]] = {name: [] for name in _LOGGED}
        self._clock, self._of_processor = time.perf_counter(), time.process_time()

    def _wait(self, report: dict[str, Any]) -> None:
        """Of all processes: tells what the steps took, and waits until others are asked for."""
        reports: list[Any] = [report]
        if distributed.is_initialized():
            reports = [None] * distributed.get_world_size()
            distributed.all_gather_object(reports, report)
        wanted = [0]
        before = time.process_time()
        if self._channel is not None:
            self._channel.write(json.dumps(reports) + "\n")
            self._channel.flush()
            wanted = [self._next()]
        if distributed.is_initialized():
            distributed.broadcast_object_list(wanted)
        self._wanted, self._idle = abs(wanted[0]), time.process_time() - before
        if wanted[0] < 0:
            self._profile = StepProfile()
        self._begin()

    def _next(self) -> int:
        """What is asked for. Where nobody is left to ask, this process is no longer wanted."""
        line = self._channel.readline()
        if not line:
            self._channel.close()
            raise SystemExit("what has asked for steps is gone")
        return int(line)
