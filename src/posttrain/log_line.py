"""What a log line of training says beside transformers' own: the method's metrics, throughput, memory."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch

from posttrain.checkpoint_trainer import CheckpointTrainer
from posttrain.counts import Counts
from posttrain.losses import Loss


def peak_memory_mib(device: torch.device) -> float:
    """The largest memory that this process has held: on the GPU where it trains on one, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


class LogTrainer(CheckpointTrainer):
    """transformers.Trainer, which counts between two log lines over all processes and all interruptions of a run.

    Attributes:
        tokens_since_log: that this process has trained on since the last line.
    """

    method: Any

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.tokens_since_log = 0.0
        self._counts = Counts()
        self._all_tokens = self._all_seconds = 0.0
        self._clock = time.perf_counter()
        self._step_of_last_log = 0

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trains; see transformers.Trainer.train."""
        self._clock, self._step_of_last_log = time.perf_counter(), 0
        return super().train(*args, **kwargs)

    def count(self, loss: Loss, is_filler: bool = False) -> None:
        """Adds a batch's metrics to those of the next line; of a filler, their names alone."""
        self._counts.add(loss.emptied() if is_filler else loss)

    def _pop_metrics(self) -> dict[str, float]:
        """Means and extremes of everything counted since the last call, over all ranks."""
        counts, self._counts = self._counts, Counts()
        if not counts.sums:
            return {}
        names = sorted(counts.sums)
        weights = [torch.as_tensor(counts.weights[name], device=self.args.device) for name in names]
        table = torch.stack([torch.stack([counts.sums[name] for name in names]), torch.stack(weights).float()]).double()
        if self.args.world_size > 1:
            table = self.accelerator.reduce(table, "sum")
        values = {name: s / w for name, s, w in zip(names, *table.tolist(), strict=True) if w}
        if counts.largest:
            keys = sorted(counts.largest)
            largest = torch.stack([counts.largest[key] for key in keys])
            if self.args.world_size > 1:
                largest = self.accelerator.gather(largest[None]).amax(0)
            values |= {name: sign * value for (name, sign), value in zip(keys, largest.tolist(), strict=True)}
        return self.method.finish_metrics(values)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the method's metrics, throughput and memory to each line of training."""
        if "loss" in logs:
            logs.update(self._pop_metrics())
            tokens = self.tokens_since_log
            if self.args.world_size > 1:
                tokens = self.accelerator.reduce(torch.tensor(tokens, device=self.args.device), "sum").item()
            before = next((line["num_tokens"] for line in reversed(self.state.log_history) if "num_tokens" in line), 0)
            logs["num_tokens"] = before + tokens
            seconds = time.perf_counter() - self._clock
            logs["tokens_per_second"] = tokens / seconds
            self._all_tokens, self._all_seconds = self._all_tokens + tokens, self._all_seconds + seconds
            steps = self.state.global_step - self._step_of_last_log
            logs["step_time"], self._step_of_last_log = seconds / max(1, steps), self.state.global_step
            logs["peak_memory_mib"] = peak_memory_mib(self.args.device)
            self.tokens_since_log, self._clock = 0.0, time.perf_counter()
        super().log(logs, start_time)

    @property
    def tokens_per_second(self) -> float:
        """Over all logged steps of this process's training, evaluation not counted; 0 before the first."""
        return self._all_tokens / self._all_seconds if self._all_seconds else 0.0

    def progress_state(self) -> dict[str, Any]:
        """What this process has counted and not yet logged, and since when."""
        return super().progress_state() | {
            "counts": self._counts.state_dict(),
            "tokens": self.tokens_since_log,
            "all_tokens": self._all_tokens,
            "all_seconds": self._all_seconds,
            "seconds_since_log": time.perf_counter() - self._clock,
            "step": self._step_of_last_log,
        }

    def restore_progress(self, state: dict[str, Any]) -> None:
        """Goes on where `progress_state` was called."""
        super().restore_progress(state)
        self._counts.load_state_dict(state["counts"], self.args.device)
        self.tokens_since_log, self._step_of_last_log = state["tokens"], state["step"]
        self._all_tokens, self._all_seconds = state["all_tokens"], state["all_seconds"]
        self._clock = time.perf_counter() - state["seconds_since_log"]
