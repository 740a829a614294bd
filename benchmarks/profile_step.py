"""Where the time of a training step goes: real rows, the trainer's own loop, torch's profiler around some of its steps.

A step here is what transformers calls one: forward and backward passes, clipping, the optimizer. Beside the rate of
each matrix product stands that of the same product by itself, over and over: what is left between the two, and the
time of everything else, is all that there is to gain.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback
from transformers import trainer as trainer_module

from posttrain import cli
from posttrain.config import parse_command_line

ROWS = {"sft": "sft", "reward": "pairs", "dpo": "pairs", "grpo": "prompts", "rloo": "prompts"}
PRECISIONS = {"fp32": ("float32", "false"), "bf16": ("float32", "true"), "bfloat16": ("bfloat16", "false")}
PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm", "mkldnn::")
# What an operator is called, in part → what it is counted as; the first that fits.
KINDS = {
    "attention": ("flash_attention", "attend_in_parts", "_softmax"),
    "copies, casts": ("aten::copy_", "aten::cat", "aten::clone", "aten::index_select", "aten::gather"),
    "zeros, filling": ("aten::fill_", "aten::zero_"),
}


def flags_of(method: str, precision: str, lora: bool, material: Path, output: Path, steps: int) -> list[str]:
    """Those of a run that does nothing but train."""
    dtype, autocast = PRECISIONS[precision]
    given: dict[str, Any] = {
        "model_name_or_path": material / ("reward_model" if method == "reward" else "model"),
        "dataset_name": material / ROWS[method],
        "output_dir": output,
        "max_steps": steps,
        "per_device_train_batch_size": 32 if ROWS[method] == "prompts" else 8,
        "learning_rate": "1e-5",
        "dtype": dtype,
        "bf16": autocast,
        "use_peft": str(lora).lower(),
        "gradient_checkpointing": "false",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": "true",
        "use_cpu": "true",
    }
    if ROWS[method] == "prompts":
        given |= {"reward_funcs": "bench_reward.share_of_thirds", "num_generations": 8, "max_completion_length": 128}
    else:
        given |= {"max_length": 1024, "train_sampling_strategy": "sequential"}
    return [text for name, value in given.items() for text in (f"--{name}", str(value))]


class Steps(TrainerCallback):
    """Times `timed` steps after the first `skip`, and profiles as many after them.

    Args:
        skip: steps of warming up.
        timed: steps of either kind.
    """

    def __init__(self, skip: int, timed: int):
        self.skip, self.timed = skip, timed
        self.profiler: Any = None  # of the step under way
        self.events: list[Any] = []
        self.seconds: list[float] = []
        self.between: list[float] = []
        self.faults: list[int] = []
        self.processor: list[float] = []
        self.profiled = 0.0
        self._began = self._ended = self._used = 0.0
        self._faults = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock, or the profiler."""
        if self._ended and self.skip <= state.global_step < self.skip + self.timed:
            self.between.append(time.perf_counter() - self._ended)
        if state.global_step >= self.skip + self.timed:
            self.profiler = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
            self.profiler.start()
        self._faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        self._used = time.process_time()
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stops it."""
        self._ended = time.perf_counter()
        if self.skip < state.global_step <= self.skip + self.timed:
            self.seconds.append(self._ended - self._began)
            self.processor.append(time.process_time() - self._used)
            self.faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - self._faults)
        elif state.global_step > self.skip + self.timed:
            self.profiled += self._ended - self._began
            self.profiler.stop()
            self.events += [event for event in self.profiler.events() if is_operator(event)]


def kind_of(event: Any) -> str:
    """What the time of an operator is counted as."""
    parent = event
    while parent is not None:
        if parent.name.startswith("Optimizer.step"):
            return "optimizer"
        parent = parent.cpu_parent
    if event.name.startswith("aten::_foreach_") or event.name == "aten::linalg_vector_norm":
        return "clipping"
    if event.name.startswith(PRODUCTS):
        return "products"
    return next((kind for kind, parts in KINDS.items() if any(p in event.name for p in parts)), "element by element")


def is_operator(event: Any) -> bool:
    """Whether an event is an operator: not a node of the backward pass or a marked region, which wait for those."""
    return "::" in event.name and not event.name.startswith("autograd::")


def shape_of(event: Any) -> tuple[int, int, int]:
    """(rows, inner, columns) of a product."""
    shapes = [tuple(shape) for shape in event.input_shapes if len(shape) > 1]
    first, second = shapes[-2:]
    inner = first[-1]
    columns = second[-1] if second[-2] == inner else second[-2]
    rows = 1
    for size in first[:-1]:
        rows *= size
    return rows, inner, columns


def seconds_alone(shape: tuple[int, int, int], dtype: torch.dtype) -> float:
    """The time of a product by itself: the least of several, operands in the caches as far as they fit."""
    rows, inner, columns = shape
    a, b = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
    least = float("inf")
    for _ in range(8):
        began = time.perf_counter()
        torch.mm(a, b)
        least = min(least, time.perf_counter() - began)
    return least


def tell(steps: Steps, dtype: torch.dtype) -> None:
    """Prints the tables."""
    whole = statistics.median(steps.seconds)
    print(
        f"{whole:.4f} s a step ({min(steps.seconds):.4f} to {max(steps.seconds):.4f}), of the processor "
        f"{statistics.median(steps.processor):.4f}; {steps.profiled / steps.timed:.4f} s under the profiler; "
        f"{statistics.median(steps.between):.4f} s between steps; {statistics.median(steps.faults):.0f} page faults"
    )
    by_kind: dict[str, list[float]] = defaultdict(list)
    by_name: dict[tuple[str, str], list[float]] = defaultdict(list)
    products: dict[tuple[int, int, int], list[float]] = defaultdict(list)
    for event in steps.events:
        kind, seconds = kind_of(event), event.self_cpu_time_total / 1e6
        by_kind[kind].append(seconds)
        by_name[kind, event.name].append(seconds)
        if kind == "products" and event.input_shapes:
            products[shape_of(event)].append(seconds)
    by_kind["between operators"] = [steps.profiled - sum(sum(times) for times in by_kind.values())]
    print(f"\n{'kind':<28}{'share':>8}{'ms a step':>12}{'calls a step':>14}")
    for kind, times in sorted(by_kind.items(), key=lambda pair: -sum(pair[1])):
        count = "" if kind == "between operators" else f"{len(times) / steps.timed:.0f}"
        print(f"{kind:<28}{sum(times) / steps.profiled:>8.1%}{sum(times) / steps.timed * 1e3:>12.2f}{count:>14}")
    print(f"\n{'operator':<64}{'ms a step':>12}{'calls a step':>14}")
    for (kind, name), times in sorted(by_name.items(), key=lambda pair: -sum(pair[1]))[:24]:
        title = f"{kind}: {name}"
        print(f"{title:<64}{sum(times) / steps.timed * 1e3:>12.2f}{len(times) / steps.timed:>14.0f}")
    tell_products(products, steps.timed, dtype)


def tell_products(products: dict[tuple[int, int, int], list[float]], steps: int, dtype: torch.dtype) -> None:
    """Prints what products of each shape took, the first of them and the median of the others, and their rate beside
    that of the same product by itself."""
    heads = f"{'ms a step':>12}{'calls a step':>14}{'first, ms':>12}{'then':>8}{'GFLOP/s':>10}{'alone':>8}"
    print(f"\n{'product':<24}{heads}")
    all_seconds = sum(sum(times) for times in products.values())
    flops, seconds_of_all_alone = 0, 0.0
    for shape, times in sorted(products.items(), key=lambda pair: -sum(pair[1])):
        flop, alone = 2 * shape[0] * shape[1] * shape[2], seconds_alone(shape, dtype)
        flops, seconds_of_all_alone = flops + flop * len(times), seconds_of_all_alone + alone * len(times)
        if sum(times) > 0.02 * all_seconds:
            name, then = " × ".join(map(str, shape)), statistics.median(times[1:] or times)
            rates = f"{times[0] * 1e3:>12.2f}{then * 1e3:>8.2f}{flop / then / 1e9:>10.0f}{flop / alone / 1e9:>8.0f}"
            print(f"{name:<24}{sum(times) / steps * 1e3:>12.2f}{len(times) / steps:>14.1f}{rates}")
    if products:
        rates = f"{flops / all_seconds / 1e9:>10.0f}{flops / seconds_of_all_alone / 1e9:>8.0f}"
        print(f"{'all':<24}{all_seconds / steps * 1e3:>12.2f}{'':>34}{rates}")


def train(watcher: TrainerCallback, method: str, precision: str, lora: bool, material: Path, steps: int) -> None:
    """Trains in this process, as from the command line, and leaves nothing.

    Args:
        watcher: is told of each step.
        method, precision, lora: of the run.
        material: folder that material.py has written.
        steps: how many.
    """
    trainer_module.DEFAULT_CALLBACKS.append(watcher)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # of the process that computes rewards
    with tempfile.TemporaryDirectory() as output:
        words = flags_of(method, precision, lora, material.resolve(), Path(output), steps)
        config, _ = parse_command_line(method, words)
        cli._train(config)


def main() -> None:
    """Run, and tell."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--material", type=Path, required=True, help="folder that material.py has written")
    parser.add_argument("--method", choices=list(ROWS), default="dpo")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="fp32")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--skip", type=int, default=3, help="steps at the beginning")
    parser.add_argument("--steps", type=int, default=6, help="steps that are timed, and after them profiled")
    args = parser.parse_args()
    steps = Steps(args.skip, args.steps)
    if not args.material.is_dir():
        parser.error(f"--material {args.material} is no folder; benchmarks/material.py writes one")
    train(steps, args.method, args.precision, args.lora, args.material, args.skip + 2 * args.steps)
    print(f"{args.method}, {args.precision}, {'LoRA' if args.lora else 'full'}, {torch.get_num_threads()} threads")
    tell(steps, torch.float32 if args.precision == "fp32" else torch.bfloat16)


if __name__ == "__main__":
    main()
