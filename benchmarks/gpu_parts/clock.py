"""Times whole steps, the same way for posttrain and for its peer: a callback of transformers' trainer.

The GPU is waited for twice, before the first timed step and after the last, so that steps may overlap as they do
without a clock. After the timed ones, two more may run under torch's profiler. Then the run is over: a whole one would
write its model, which is 2 GiB a run.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

PROFILED = 2


class Measured(Exception):
    """The steps that are wanted have been taken; nothing else of the run is."""


class Clock(TrainerCallback):
    """Ends a run after so many steps or seconds by raising `Measured`, and keeps what they took in `record`.

    Args:
        skip: steps before the timed ones, at least 1.
        steps: timed ones, at most.
        seconds: after which no further step is timed.
        profile: whether steps run under the profiler then; `trace` holds their events.
        file: where the record is written to.
    """

    def __init__(self, skip: int, steps: int, seconds: float, profile: bool = False, file: Path | None = None):
        self.skip, self.steps, self.seconds, self.profile, self.file = skip, steps, seconds, profile, file
        self.record: dict[str, Any] = {}
        self.trace: Any = None
        self._done = 0
        self._at: list[float] = []
        self._last: int | None = None  # the last timed step
        self._profiler: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begins to count memory."""
        self._began = time.perf_counter()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begins to profile after the timed steps."""
        if self._last is not None and self._profiler is None and self.profile:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(activities=activities)
            self._profiler.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Has a line logged where a time is taken: the numbers of tokens stand in it."""
        self._done += 1
        late = time.perf_counter() - self._began > self.seconds
        is_last = self._last is None and self._done > self.skip and (late or self._done == self.skip + self.steps)
        if is_last:
            self._last = self._done
        control.should_log = self._done == self.skip or is_last
        if self._profiler is not None and self._done == self._last + PROFILED:
            _synchronize()
            self._profiler.__exit__(None, None, None)
            self.trace, self._profiler = self._profiler, None
            raise Measured

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Takes a time."""
        if logs is not None and "loss" in logs and len(self._at) < 2 and self._done in (self.skip, self._last):
            _synchronize()
            self._at.append(time.perf_counter())
            if len(self._at) == 2:
                self._tell(state)
                if not self.profile:
                    raise Measured

    def _tell(self, state: Any) -> None:
        lines = [line for line in state.log_history if "loss" in line]
        steps = (self._last or 0) - self.skip
        self.record = {
            "seconds to the first timed step": self._at[0] - self._began,
            "steps": steps,
            "seconds a step": (self._at[1] - self._at[0]) / max(1, steps),
            "losses": [line["loss"] for line in lines[:2]],
            "gradient norm": lines[1].get("grad_norm") if len(lines) > 1 else None,
        }
        tokens = [line["num_tokens"] for line in lines[:2] if "num_tokens" in line]
        if len(tokens) == 2:
            self.record["tokens a step"] = (tokens[1] - tokens[0]) / max(1, steps)
        if torch.cuda.is_available():
            self.record["peak memory, MiB"] = torch.cuda.max_memory_allocated() / 2**20
            self.record["reserved memory, MiB"] = torch.cuda.max_memory_reserved() / 2**20
        if self.file is not None:
            self.file.write_text(json.dumps(self.record), encoding="utf-8")


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
