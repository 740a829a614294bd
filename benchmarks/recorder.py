"""One clock for both sides: a transformers callback that times whole training steps and notes losses and memory."""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from transformers import TrainerCallback
from transformers import trainer as trainer_module


def peak_memory_bytes() -> int:
    """The most resident memory that this process has held since it started, libraries included."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss survives exec and may tell of the parent
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


class Recorder(TrainerCallback):
    """Writes seconds of each step, the loss of each step, seconds from process start to the first step, and memory.

    A step lasts from the end of the one before to its own: what is sampled, read or logged in between is part of it."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.ended = 0.0
        self.seconds: list[float] = []
        self.record: dict[str, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.record["memory_before_bytes"] = psutil.Process().memory_info().rss
        self.record["start_seconds"] = time.time() - psutil.Process().create_time()
        self.ended = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self.ended)
        self.ended = now

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.record["step_seconds"] = self.seconds
        self.record["losses"] = [entry["loss"] for entry in state.log_history if "loss" in entry]
        self.record["num_tokens"] = [entry["num_tokens"] for entry in state.log_history if "num_tokens" in entry]
        self.record["grad_norms"] = [entry["grad_norm"] for entry in state.log_history if "grad_norm" in entry]
        self.record["peak_memory_bytes"] = peak_memory_bytes()
        self.path.write_text(json.dumps(self.record), encoding="utf-8")


def install(path: str) -> None:
    """Make every transformers Trainer of this process write its record to `path` when training ends."""
    trainer_module.DEFAULT_CALLBACKS.append(Recorder(path))
