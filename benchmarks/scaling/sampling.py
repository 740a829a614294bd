"""Tokens a second of the engine that samples completions, against the number of rows and the length of the prompt."""

from __future__ import annotations

import itertools
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from benchmarks.material import VOCABULARY
from posttrain.rollout.engine import Engine, Sampling, uniforms
from posttrain.scoring import Scorer

# What is varied → number of prompts, their tokens, completions of each.
SERIES = {
    "rows of one prompt": [(1, 256, rows) for rows in (1, 4, 16, 64, 256)],
    "rows, a prompt each": [(rows, 256, 1) for rows in (1, 4, 16, 64)],
    "prompt": [(4, prompt, 4) for prompt in (16, 64, 256, 1024, 4096)],
}


def measure(
    material: Path, model_name: str, series: dict[str, list[tuple[int, int, int]]], tokens: int, rounds: int
) -> list[dict[str, Any]]:
    """Seconds of a generation, and of the pass over its prompts alone, in turn.

    Args:
        material: folder of the models.
        model_name: a key of points.MODELS.
        series: as SERIES.
        tokens: of each completion; none ends before.
        rounds: generations of each kind.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(material / "models" / model_name).to(device).eval()
    engine = Engine(model, Scorer(model))
    points = [(name, *point) for name, some in series.items() for point in some]
    seeds = itertools.count()

    def seconds(prompts: list[np.ndarray], completions: int, number: int) -> tuple[float, float]:
        numbers = uniforms(next(seeds), range(len(prompts) * completions), number)
        wall, processor = time.perf_counter(), time.process_time()
        engine.generate(model, prompts, completions, Sampling(number, ()), numbers)
        return time.perf_counter() - wall, time.process_time() - processor

    draw = np.random.default_rng(0)
    taken: dict[Any, list[tuple[tuple[float, float], tuple[float, float]]]] = {point: [] for point in points}
    for turn in tqdm(range(rounds + 1), "sampling", leave=False):
        for point in points:
            _, count, length, completions = point
            prompts = [draw.integers(4, VOCABULARY, length) for _ in range(count)]
            both = seconds(prompts, completions, 1), seconds(prompts, completions, tokens)
            if turn:  # the first one warms up
                taken[point].append(both)
    results = []
    for (name, count, length, completions), times in taken.items():
        rows = count * completions
        decoding = [rows * (tokens - 1) / (whole[0] - first[0]) for first, whole in times]
        results.append(
            {
                "series": name,
                "prompts": count,
                "prompt": length,
                "completions": completions,
                "tokens": tokens,
                "tokens_a_second": statistics.median(rows * tokens / whole[0] for _, whole in times),
                "decoding": statistics.median(decoding),
                "of_processor": statistics.median(
                    rows * (tokens - 1) / (whole[1] - first[1]) for first, whole in times
                ),
                "prompt_seconds": statistics.median(first[0] for first, _ in times),
            }
        )
    return results
