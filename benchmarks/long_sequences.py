"""What long rows cost on a CPU: recomputed activations, a shared prompt, the head, and one step over 32k tokens.

`python benchmarks/long_sequences.py recompute|prefix|head|row|plans|thresholds` prints a table each, which
docs/long_sequences.md has.
Memory is counted by torch's profiler: tensors that are there at once, at most, in a forward and a backward pass,
weights and their gradients left out. Seconds are those of the processor, in one thread, so that others on the machine
hardly change them. `plans` trains nothing; it asks `posttrain plan`. `thresholds` takes steps with glibc's own
threshold for memory of its own and with one of 4 MiB in turn.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from posttrain.attention import _attend_per_segment
from posttrain.batch import NO_PARENT, PackedBatch, Segments, pack
from posttrain.config import parse_command_line
from posttrain.embedded.tokenizer import train_tokenizer, write_tokenizer
from posttrain.logprobs import _HeadStatistics
from posttrain.models import checkpoint_activations
from posttrain.planning.estimate import plan
from posttrain.recompute import KEPT, recompute_less
from posttrain.scoring import Scorer
from posttrain.shared_prefix import attend_in_parts, bytes_of_gathering

MIB = 2**20


def peak_and_held(step: Callable[[], torch.Tensor]) -> tuple[float, float]:
    """MiB of tensors that are there at once at most, and between the forward and the backward pass."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        loss = step()
        middle = time.time_ns()
        loss.backward()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = held = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
        held = now if event.start_ns() < middle else held
    return most / MIB, held / MIB


def document(tokens: int) -> PackedBatch:
    mask = np.ones(tokens, dtype=np.int8)
    mask[0] = 0
    return pack([np.arange(tokens) * 37 % 1000], [mask], [NO_PARENT], num_groups=1)


def model_of(hidden: int, layers: int) -> tuple[Any, Scorer]:
    """A random Qwen2 that knows 32k positions, to be trained."""
    torch.manual_seed(0)
    heads = hidden // 64
    config = Qwen2Config(
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 4),
        vocab_size=1024,
        max_position_embeddings=2**15,
    )
    model: Any = Qwen2ForCausalLM(config)
    scorer = Scorer(model)
    model.train()
    scorer(model, document(64)).logprobs.sum().backward()  # gradients are there from now on
    return model, scorer


def recompute(tokens: list[int], hidden: int, layers: int) -> None:
    model, scorer = model_of(hidden, layers)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters, {layers} layers of {hidden}")
    print(
        "| tokens | computed again | held for the backward pass, MiB | at most, MiB | seconds |\n|---|---|---|---|---|"
    )
    for length in tokens:
        batch = document(length)

        def step(batch: PackedBatch = batch) -> torch.Tensor:
            return -scorer(model, batch).logprobs.mean()

        for what in (None, "elementwise", "all_but_attention", "every other layer", "layers"):
            checkpoint_activations(model, on=what is not None)
            if what in KEPT:
                recompute_less(model, what, {})
            if what == "every other layer":
                model.activation_checkpointing_enable({"use_reentrant": False}, every_n_layers=2)
            began = time.process_time()
            step().backward()
            seconds = time.process_time() - began
            most, held = peak_and_held(step)
            print(f"| {length:,} | {what or 'nothing'} | {held:,.0f} | {most:,.0f} | {seconds:.2f} |", flush=True)


def thresholds(tokens: list[int], hidden: int, layers: int) -> None:
    """What it costs to take large memory from the system each time, layers being computed again."""
    library = ctypes.CDLL(None)
    # What glibc's own, which grows with what is given back, comes to; and the smaller one. Of two, the heap's end.
    settings = {"of its own": (32 * MIB, 64 * MIB), "4 MiB": (4 * MIB, 8 * MIB)}
    model, scorer = model_of(hidden, layers)
    checkpoint_activations(model, on=True)
    print("| tokens | threshold | seconds | of the system | page faults | ratio |\n|---|---|---|---|---|---|")
    for length in tokens:
        batch, found = document(length), dict[str, list[list[float]]]()
        for _ in range(7):  # of which the first does not count
            for name, (own, end) in settings.items():
                assert library.mallopt(-3, own) and library.mallopt(-1, end)  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
                before = resource.getrusage(resource.RUSAGE_SELF)
                (-scorer(model, batch).logprobs.mean()).backward()
                after = resource.getrusage(resource.RUSAGE_SELF)
                system, faults = after.ru_stime - before.ru_stime, after.ru_minflt - before.ru_minflt
                found.setdefault(name, []).append([after.ru_utime - before.ru_utime + system, system, faults])
        pairs = zip(found["4 MiB"][1:], found["of its own"][1:], strict=True)
        ratio = statistics.median(a[0] / b[0] for a, b in pairs)
        for name, steps in found.items():
            seconds, system, faults = (statistics.median(column) for column in zip(*steps[1:], strict=True))
            more = f"{ratio:.2f}" if name == "4 MiB" else ""
            print(f"| {length:,} | {name} | {seconds:.2f} | {system:.2f} | {faults:,.0f} | {more} |", flush=True)


def prefix(sizes: list[tuple[int, int, int]]) -> None:
    heads, key_heads, width = 8, 2, 64
    print("| prompt | completions | laid beside each, MiB | one call each, ms | two calls, ms |\n|---|---|---|---|---|")
    for prompt, count, length in sizes:
        torch.manual_seed(0)
        segments = Segments((prompt, *[length] * count), (NO_PARENT, *[0] * count))
        tokens = sum(segments.lengths)
        parts = [torch.randn(1, n, tokens, width, requires_grad=True) for n in (heads, key_heads, key_heads)]
        upstream = torch.randn(1, tokens, heads, width)
        times = []
        for attend in (
            lambda q, k, v, s=segments: _attend_per_segment(q, k, v, s, None, 0.0, None),
            lambda q, k, v, s=segments: attend_in_parts(q, k, v, s, None).transpose(1, 2),
        ):
            best = float("inf")
            for _ in range(2):
                began = time.process_time()
                attend(*parts).backward(upstream)
                best = min(best, time.process_time() - began)
            times.append(1000 * best)
        gathered = bytes_of_gathering(segments, key_heads * width, 4) / MIB
        cells = f"{prompt:,} | {count} × {length} | {gathered:,.1f} | {times[0]:,.0f} | {times[1]:,.0f}"
        print(f"| {cells} |", flush=True)


def head(targets: int, vocabulary: int, hidden: int) -> None:
    """The output head by the number of targets that it takes at a time."""
    print("| targets at a time | forward, ms | backward, ms |\n|---|---|---|")
    torch.manual_seed(0)
    states = torch.randn(targets, hidden, requires_grad=True)
    weight = torch.randn(vocabulary, hidden).mul_(0.02).requires_grad_()
    wanted = torch.randint(0, vocabulary, (targets,))
    for together in (1, 4, 14, 28, 56, targets):
        forward = backward = float("inf")
        for _ in range(3):
            began = time.process_time()
            statistics = _HeadStatistics.apply(states, weight, None, wanted, 1.0, (together, together), False)
            middle = time.process_time()
            statistics[:, 0].sum().backward()
            forward, backward = min(forward, middle - began), min(backward, time.process_time() - middle)
            states.grad = weight.grad = None
        print(f"| {together} | {1000 * forward:,.0f} | {1000 * backward:,.0f} |", flush=True)


def row(tokens: int, words: list[str]) -> None:
    """One optimizer step of `posttrain sft` over one row, beside its plan."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _model(folder / "model", tokens)
        rows = folder / "rows.jsonl"
        ids = (np.arange(tokens) * 37 % 255 + 1).tolist()
        rows.write_text(json.dumps({"input_ids": ids}) + "\n", encoding="utf-8")
        flags = ["--model_name_or_path", folder / "model", "--dataset_name", rows, "--output_dir", folder / "out"]
        flags += ["--cache_dir", folder / "cache", "--max_length", tokens, "--per_device_train_batch_size", 1]
        flags += ["--max_steps", 1, "--logging_steps", 1, "--save_strategy", "no", "--disable_tqdm", "true", *words]
        for command in ("plan sft", "sft"):
            line = [sys.executable, "-m", "posttrain.cli", *command.split(), *map(str, flags)]
            done = subprocess.run(line, text=True, capture_output=True, check=False)
            told = [one for one in (done.stdout + done.stderr).splitlines() if one.strip()]
            wanted = ("MiB", "GiB", "peak_memory", "Planned", "activations")
            print(f"$ posttrain {command}: exit {done.returncode}")
            print("\n".join(one[:300] for one in told if any(word in one for word in wanted)), flush=True)


QWEN25_7B: dict[str, Any] = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}
WAYS = {
    "nothing": "--no_gradient_checkpointing",
    "elementwise": "--recompute elementwise",
    "all_but_attention": "--recompute all_but_attention",
    "layers": "",
    "layers, offloaded": "--activation_offloading",
}
CARDS = {
    "LoRA, one GPU": "--use_peft --dtype bfloat16 --learning_rate 2e-4",
    "all weights, 8 GPUs, fsdp2": "--accelerate_config fsdp2 --num_processes 8",
}


def plans() -> None:
    """The longest row that fits, and what one of 32k tokens takes, of a model of the shape of Qwen2.5-7B."""
    print("| trained | computed again | 32k tokens take | longest on 80 GB | longest on 24 GB |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _tokenizer(folder / "model")
        (folder / "model/config.json").write_text(json.dumps(QWEN25_7B), encoding="utf-8")
        rows = folder / "rows.jsonl"
        rows.write_text((json.dumps({"input_ids": [5] * 32768}) + "\n") * 8, encoding="utf-8")
        words = f"--model_name_or_path {folder / 'model'} --dataset_name {rows} --output_dir {folder / 'out'}"
        words += f" --cache_dir {folder / 'cache'} --max_length 32768 --per_device_train_batch_size 1 --max_steps 100"
        for trained, flags in CARDS.items():
            for way, more in WAYS.items():
                config, launch = parse_command_line("sft", f"{words} {flags} {more}".split())
                found = [plan(config, launch, gpu=gpu) for gpu in ("a100-80gb", "rtx4090")]
                longest = [f"{one.longest_row:,}" if one.longest_row else "none" for one in found]
                print(f"| {trained} | {way} | {found[0].upper / 2**30:,.1f} GiB | {' | '.join(longest)} |", flush=True)


def _model(folder: Path, positions: int) -> None:
    from posttrain.embedded.weights import write_model

    shape = {"hidden_size": 128, "intermediate_size": 352, "num_attention_heads": 2, "num_hidden_layers": 4}
    _tokenizer(folder)
    write_model(shape | {"num_key_value_heads": 1, "vocab_size": 300}, 1, folder)
    about = folder / "config.json"
    settings = json.loads(about.read_text(encoding="utf-8"))
    about.write_text(json.dumps(settings | {"max_position_embeddings": positions}), encoding="utf-8")


def _tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True)
    write_tokenizer(train_tokenizer(["one two three four five six"] * 10, 300), folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("recompute", "prefix", "head", "row", "plans", "thresholds"))
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    given, words = parser.parse_known_args()
    torch.set_num_threads(1)
    if given.what == "recompute":
        recompute(given.tokens, given.hidden, given.layers)
    elif given.what == "thresholds":
        thresholds(given.tokens, given.hidden, given.layers)
    elif given.what == "prefix":
        prefix([(256, 8, 128), (1024, 8, 128), (1024, 64, 64), (2048, 8, 256), (4096, 16, 256)])
    elif given.what == "head":
        head(96, 151_936, 512)
    elif given.what == "plans":
        plans()
    else:
        row(given.tokens[0], words)


if __name__ == "__main__":
    main()
