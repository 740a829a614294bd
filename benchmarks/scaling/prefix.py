"""What it gains to compute a prompt once for all of its completions, beside the formula that predicts it
(posttrain.planning.sharing): forward and backward passes through the project's own code, with the prompt shared, and
as so many rows that repeat it."""

from __future__ import annotations

import ctypes
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from benchmarks.material import VOCABULARY
from posttrain.batch import NO_PARENT, PackedBatch, pack
from posttrain.config import parse_command_line
from posttrain.planning.memory import Setting
from posttrain.planning.shape import shape_of
from posttrain.planning.sharing import memory_gain, speed_gain
from posttrain.scoring import Scorer

# Tokens of a pass. More of them are cut into several, which take as long as one, but hold less memory.
_MOST_TOKENS = 20_480
_CLEAR_REFS = Path("/proc/self/clear_refs")  # 5: the highest resident memory is counted anew


def group_batch(prompt: int, completion: int, group: int, shared: bool) -> PackedBatch:
    """A random prompt with random completions, every token of them a target.

    Args:
        prompt: P, its tokens.
        completion: L, tokens of each.
        group: G, completions.
        shared: in one row; otherwise as G documents that begin with the prompt.
    """
    draw = np.random.default_rng(0)
    start = draw.integers(4, VOCABULARY, prompt)
    completions = [draw.integers(4, VOCABULARY, completion) for _ in range(group)]
    first = np.zeros(prompt, dtype=np.int8)
    masks = [np.ones(completion, dtype=np.int8) for _ in completions]
    if shared and prompt:
        return pack([start, *completions], [first, *masks], [NO_PARENT] + [0] * group, num_groups=1)
    if not prompt:
        for mask in masks:
            mask[0] = 0  # nothing predicts it
    rows = [np.concatenate([start, ids]) for ids in completions]
    return pack(rows, [np.concatenate([first, mask]) for mask in masks], [NO_PARENT] * group, num_groups=1)


class Pass:
    """Forward and backward passes over batches, one after the other, their gradients added up.

    Args:
        model: in training mode, without gradients.
        scorer: of the model.
        batches: on the model's device.
    """

    def __init__(self, model: Any, scorer: Scorer, batches: list[PackedBatch]) -> None:
        self.model, self.scorer, self.batches = model, scorer, batches
        self.autocast = torch.autocast("cuda", torch.bfloat16, enabled=model.device.type == "cuda")
        self.seconds: list[float] = []
        self.processor: list[float] = []
        self.memory = 0

    def hold(self) -> None:
        """Measures what one holds at most. A pass of its own, which warms up as well: to give back memory that is free,
        so that it is counted, takes time."""
        before = _memory_from_here()
        self._run()
        self.memory = _peak() - before

    def take(self) -> None:
        """Measures how long one takes."""
        wall, processor = time.perf_counter(), time.process_time()
        self._run()
        self.seconds.append(time.perf_counter() - wall)
        self.processor.append(time.process_time() - processor)

    def _run(self) -> None:
        for batch in self.batches:
            with self.autocast:
                loss = -self.scorer(self.model, batch).logprobs.sum()
            loss.backward()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.model.zero_grad(set_to_none=True)


def _memory_from_here() -> int:
    """Bytes held; the highest is counted from here on."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    ctypes.CDLL(None).malloc_trim(0)
    _CLEAR_REFS.write_text("5")
    return _peak()


def _peak() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024


def measure(
    material: Path, model_name: str, prompts: list[int], completion: int, groups: list[int], rounds: int
) -> list[dict[str, Any]]:
    """The gain at each prompt length and group size.

    Args:
        material: folder of the models.
        model_name: a key of points.MODELS.
        prompts: P.
        completion: L.
        groups: G.
        rounds: passes of each kind, in turn; one where a pass is cut into several.

    Returns:
        For each of them medians over the rounds, [shared, repeated], measured and predicted gains.
    """
    folder = material / "models" / model_name
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder).to(device)
    scorer = Scorer(model)
    model.train()
    config, _ = parse_command_line("sft", ["--model_name_or_path", str(folder), "--dataset_name", str(folder)])
    shape = shape_of(config, torch.bfloat16 if device == "cuda" else None, device == "cuda")
    setting = Setting(device == "cuda", False, 1, 1, frozenset(), "adamw_torch", device == "cuda")
    results = []
    cells = [(prompt, group) for prompt in prompts for group in groups]
    for prompt, group in tqdm(cells, "shared prefix", leave=False):
        at_once = max(1, min(group, _MOST_TOKENS // (prompt + completion)))
        sizes = [at_once] * (group // at_once) + [group % at_once] * (group % at_once > 0)
        shared = Pass(model, scorer, [group_batch(prompt, completion, group, True).to(device)])
        repeated = Pass(model, scorer, [group_batch(prompt, completion, n, False).to(device) for n in sizes])
        shared.hold()
        if len(sizes) == 1:
            repeated.hold()
        else:
            Pass(model, scorer, repeated.batches[:1]).hold()
        for turn in range(rounds if len(sizes) == 1 else 1):
            for one in (shared, repeated) if turn % 2 else (repeated, shared):
                one.take()
        results.append(
            {
                "prompt": prompt,
                "group": group,
                "completion": completion,
                "passes": len(sizes),
                "speed_predicted": speed_gain(shape, prompt, completion, group),
                "memory_predicted": memory_gain(shape, setting, prompt, completion, group),
                **_compared(shared, repeated),
            }
        )
    return results


def _compared(shared: Pass, repeated: Pass) -> dict[str, Any]:
    found: dict[str, Any] = {"memory": repeated.memory / shared.memory if repeated.memory else None}
    for name in ("seconds", "processor"):
        found[name] = [statistics.median(getattr(one, name)) for one in (shared, repeated)]
    # Seconds of the processor are the same whatever else a machine does.
    ways = found["seconds" if torch.cuda.is_available() else "processor"]
    return found | {"speed": ways[1] / ways[0], "bytes": [shared.memory, repeated.memory]}
