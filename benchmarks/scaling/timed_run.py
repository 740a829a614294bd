"""A run of `posttrain METHOD` that takes its steps when it is told to, and says what they took:
`timed_run.py SOCKET METHOD --its --flags`, started by turns.py.

Several such runs wait at a time, each after a whole step, so that their steps can be measured in turn.
"""

from __future__ import annotations

import json
import socket
import sys
from typing import Any

import psutil
import torch
from torch import distributed
from transformers import trainer as trainer_module

from benchmarks.recorder import peak_memory_bytes
from posttrain import cli
from posttrain.config import parse_command_line
from posttrain.errors import report_mistakes
from posttrain.launch import train
from posttrain.planned import StepClock


class Turns(StepClock):
    """Waits after each step for the next ones to be asked for. A step lasts from the end of the waiting to its own end:
    what is sampled and read for it is part of it.

    Args:
        address: of the socket on which steps are asked for.
    """

    def __init__(self, address: str) -> None:
        super().__init__()
        self._address, self._wanted, self._tokens = address, 0, 0.0
        self._channel: Any = None
        self._before = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(self._address)
            self._channel = connection.makefile("rw", encoding="utf-8")
        self._before = psutil.Process().memory_info().rss
        self._wait(None)
        self._set()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        super().on_step_end()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if len(self.seconds) == self._wanted:
            tokens = logs["num_tokens"] - self._tokens
            self._tokens = logs["num_tokens"]
            steps = {"seconds": self.seconds, "processor": self.of_processor, "tokens": tokens}
            self._wait(steps | {"peak": _peak(), "before": self._before})
        self._set()

    def _wait(self, report: dict[str, Any] | None) -> None:
        """Of all processes: tells what the steps took, and waits until others are asked for."""
        reports: list[Any] = [report]
        if distributed.is_initialized():
            reports = [None] * distributed.get_world_size()
            distributed.all_gather_object(reports, report)
        wanted = [0]
        if self._channel is not None:
            self._channel.write(json.dumps(reports) + "\n")
            self._channel.flush()
            wanted = [int(self._channel.readline())]
        if distributed.is_initialized():
            distributed.broadcast_object_list(wanted)
        self.seconds, self.of_processor, self._wanted = [], [], wanted[0]


def _peak() -> int:
    """Bytes held at most: of tensors on a GPU, of the process without one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_memory_bytes()


def main() -> int:
    address, method, *flags = sys.argv[1:]
    trainer_module.DEFAULT_CALLBACKS.append(Turns(address))
    config, launch = parse_command_line(method, flags)
    return train(config, launch, ["-m", "benchmarks.scaling.timed_run", *sys.argv[1:]], cli._train)


if __name__ == "__main__":
    sys.exit(report_mistakes(main))
