"""The process of a probe: `python -m posttrain.planning.probe_run REQUEST`, written by `take_probe`."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.config import CommonConfig
from posttrain.errors import report_mistakes
from posttrain.launch import train
from posttrain.planning.options import parse_run

if TYPE_CHECKING:
    import torch
    from transformers import TrainingArguments


def main() -> int:
    """Take the steps, and write what was measured to the place that the request names."""
    file = sys.argv[1]
    request: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
    config, launch = parse_run(request["method"], request["words"], request["params"])
    command = ["-m", "posttrain.planning.probe_run", file]
    return train(as_probe(config, request), launch, command, lambda config: _run(config, request))


def as_probe(config: CommonConfig, request: dict[str, Any]) -> CommonConfig:
    """The run's config, with what is written and how long it goes on exchanged."""
    changes: dict[str, Any] = {
        "max_steps": request["steps"],
        "warmup_steps": 0,
        "output_dir": request["output_dir"],
        "work_dir": None,
        "metrics_file": None,
        "plots_file": None,
        "save_strategy": "no",
        "eval_strategy": "no",
        "do_eval": False,
        "eval_on_start": False,
        "load_best_model_at_end": False,
        "metric_for_best_model": None,
        "resume_from_checkpoint": None,
        "push_to_hub": False,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "steps",
        "logging_steps": 1,
    }
    if request["rows"] is not None:
        changes["train_sampling_strategy"] = "sequential"
    if hasattr(config, "log_completions"):
        changes["log_completions"] = False
    return dataclasses.replace(config, **changes)


def _run(config: CommonConfig, request: dict[str, Any]) -> None:
    from transformers import TrainerCallback

    from posttrain.methods.dpo import DPO
    from posttrain.methods.grpo import GRPO
    from posttrain.methods.reward import Reward
    from posttrain.methods.rloo import RLOO
    from posttrain.methods.sft import SFT
    from posttrain.planned import StepClock
    from posttrain.training import run

    methods: dict[str, Any] = {"sft": SFT, "reward": Reward, "dpo": DPO, "grpo": GRPO, "rloo": RLOO}
    base: Any = methods[config.method]
    clock, loads = StepClock(), list[dict[str, float]]()

    class Report(TrainerCallback):
        began = 0.0

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.began = time.time()

        def on_train_end(self, args: TrainingArguments, *more: Any, **kwargs: Any) -> None:
            if os.environ.get("RANK", "0") == "0":
                start = self.began - request["began"]
                found = {"seconds": clock.seconds, "of_processor": clock.of_processor, "loads": loads}
                found |= {"peak": _peak(args.device), "start": start}
                Path(request["result"]).write_text(json.dumps(found), encoding="utf-8")

    class Probed(base):
        def setup(self, model: Any, scorer: Any, datasets: Any, arguments: Any) -> Any:
            rows = request["rows"]
            if rows is not None:
                datasets = [datasets[0].select(rows).flatten_indices(keep_in_memory=True), *datasets[1:]]
            return super().setup(model, scorer, datasets, arguments)

        def weights(self, batch: Any) -> Any:
            loads.append(_load(batch))
            return super().weights(batch)

        def callbacks(self) -> list[Any]:
            return [*super().callbacks(), clock, Report()]

    run(Probed(config))


def _load(batch: Any) -> dict[str, float]:
    """The fields of `Load`, of a micro-batch (a PackedBatch)."""
    segments = list(zip(batch.segments.lengths, batch.segments.key_lengths, batch.segments.parents, strict=True))
    return {
        "rows": batch.num_groups,
        "tokens": sum(batch.segments.lengths),
        "targets": batch.num_targets,
        "sequences": batch.num_sequences,
        "unshared": batch.num_tokens,
        "padded": batch.num_sequences * max(batch.segments.key_lengths),
        "keys": sum(keys for _, keys, parent in segments if parent >= 0),
        "pairs": sum(own * (own + 1) // 2 + own * (keys - own) for own, keys, _ in segments),
    }


def _peak(device: torch.device) -> float:
    """Bytes that this process has held at most on its device. Linux counts what the process held that started this one
    as its own, but for this line of its status."""
    from posttrain.log_line import peak_memory_mib

    status = Path("/proc/self/status")
    if device.type == "cpu" and status.is_file():
        line = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM")), None)
        if line is not None:
            return int(line.split()[1]) * 1024.0
    return peak_memory_mib(device) * 2**20


if __name__ == "__main__":
    sys.exit(report_mistakes(main))
