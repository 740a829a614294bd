"""Sampling: posttrain's engine, launched kernel by kernel and with captured graphs, and transformers' generate."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from posttrain.rollout.engine import Engine, Sampling, uniforms
from posttrain.scoring import Scorer

from .material import lengths, make_model
from .profiling import summary, verdict
from .settings import Setting, peaks_of, token_bytes


def timed(device: str, run: Callable[[], int]) -> tuple[float, int]:
    """Seconds that a run takes, to the end of what it has asked the GPU for; and its tokens."""
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    tokens = run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, tokens


def generate(model: Any, prompts: list[np.ndarray], group: int, tokens: int) -> int:
    """transformers' own sampling, prompts padded on the left; none ends early."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.from_numpy(prompt)
        mask[row, width - len(prompt) :] = 1
    rows, masks = (one.repeat_interleave(group, 0).to(model.device) for one in (ids, mask))
    config = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=1)
    return int(model.generate(rows, attention_mask=masks, generation_config=config)[:, width:].numel())


def measure(device: str, setting: Setting, seconds: float) -> dict[str, Any]:
    """Tokens a second of each way, with what limits them.

    Args:
        device: that samples.
        setting: sizes.
        seconds: after which no further way is begun.
    """
    began = time.perf_counter()
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = make_model(setting, device, dtype).eval()
    engine = Engine(model, Scorer(model))
    draw = np.random.default_rng(0)
    sizes = lengths(draw, setting.prompt, setting.prompts, setting.longest)
    prompts = [draw.integers(3, setting.vocabulary, size) for size in sizes]
    rows = setting.prompts * setting.group

    def sample(tokens: int) -> int:
        numbers = uniforms(0, range(rows), tokens)
        made = engine.generate(model, prompts, setting.group, Sampling(tokens, ()), numbers)
        return sum(len(ids) for ids in made.token_ids)

    found: dict[str, Any] = {"rows": rows, "new tokens": setting.new_tokens}
    peaks = peaks_of(torch.cuda.get_device_name()) if device == "cuda" else None
    could = engine.captures
    for name, captures in (("kernel by kernel", False), ("captured graphs", True)):
        if time.perf_counter() - began > seconds:
            found[name] = "no time left"
            continue
        if captures and device == "cuda" and not could:
            found[name] = "was refused"
            continue
        engine.captures = captures
        sample(min(setting.new_tokens, 40))  # loads kernels
        spent, tokens = timed(device, lambda: sample(setting.new_tokens))
        held = float(np.mean(sizes)) + setting.new_tokens / 2
        a_step = spent / setting.new_tokens
        if captures and device == "cuda" and not engine.captures:
            found[name] = "was refused on the way"
            continue
        found[name] = {"tokens a second": tokens / spent, "milliseconds a step": 1e3 * a_step}
        share = None
        if peaks is not None:
            share = token_bytes(setting, rows, held) / a_step / peaks[1]
            found[name]["share of the memory's speed"] = share
        activities = [torch.profiler.ProfilerActivity.CPU]
        if device == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as profiler:
            sample(min(setting.new_tokens, 24))
            if device == "cuda":
                torch.cuda.synchronize()
        profile = summary(profiler)
        if share is not None:
            profile["verdict"] = verdict(profile["busy"], memory=share, products=profile["products"])
        found[name]["profile"] = profile
    if time.perf_counter() - began <= seconds:
        model.set_attn_implementation("sdpa")
        few = prompts[: max(1, setting.slice_rows // setting.group)]
        run = lambda: generate(model, few, setting.group, setting.slice_tokens)  # noqa: E731
        run()
        spent, tokens = timed(device, run)
        found["transformers generate, a slice"] = {"rows": len(few) * setting.group, "tokens a second": tokens / spent}
    return found
