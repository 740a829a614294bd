"""Whether kernels, log-probs and the engine give what plain ways of computing the same give; whether a step waits."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from posttrain import attention
from posttrain.batch import NO_PARENT, PackedBatch, Segments, pack
from posttrain.logprobs import TargetHead, head_statistics, statistics_from_logits
from posttrain.losses.sft import sft_loss
from posttrain.rollout.engine import Engine, Sampling, uniforms
from posttrain.scoring import Scorer

from .material import make_model
from .settings import Setting
from .steps import SFT_WAYS, own


def difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest number expected."""
    expected = expected.double()
    return float((actual.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def held_to(limits: dict[str, float], found: dict[str, float]) -> dict[str, Any]:
    """What has been found, beside what is allowed.

    Raises:
        AssertionError: some of it is more than allowed.
    """
    wrong = {name: value for name, value in found.items() if not value <= limits[name]}
    assert not wrong, f"more than allowed: {wrong}; all: {found}; limits: {limits}"
    return {name: {"difference": value, "allowed": limits[name]} for name, value in found.items()}


def attention_check(device: str) -> dict[str, Any]:
    """Attention by segments in bfloat16, forward and backward, against torch's scaled_dot_product_attention of one
    sequence at a time in float32: documents, and prompts with completions, with and without a sliding window."""
    on_gpu = device == "cuda"
    found, limits = {}, {}
    cases = {
        "documents": Segments((300, 77, 1, 513), (NO_PARENT,) * 4),
        "prompts and completions": Segments((130, 64, 1, 200, 90, 33, 70), (NO_PARENT, 0, 0, 0, NO_PARENT, 4, 4)),
    }
    for name, segments in cases.items():
        for window in (None, 48):
            torch.manual_seed(0)
            total = sum(segments.lengths)
            shapes = ((1, 14, total, 64), (1, 2, total, 64), (1, 2, total, 64))
            exact = [torch.randn(shape, device=device) for shape in shapes]
            dtype = torch.bfloat16 if on_gpu else torch.float32
            plain = [one.to(dtype).float().requires_grad_() for one in exact]
            tested = [one.to(dtype).requires_grad_() for one in exact]
            expected = attention._attend_per_segment(*plain, segments, None, 0.0, window)
            attend = attention._attend_varlen if on_gpu else _attend
            actual = attend(*tested, segments, None, window)
            upstream = torch.randn_like(expected)
            expected.backward(upstream)
            actual.backward(upstream.to(dtype))
            what = f"{name}, window {window}"
            pairs = {"output": (actual, expected)}
            pairs |= {f"gradient of {part}": (a.grad, e.grad) for part, a, e in zip("qkv", tested, plain, strict=True)}
            for part, (a, e) in pairs.items():
                found[f"{what}: {part}"] = difference(a.detach(), e.detach())
                limits[f"{what}: {part}"] = 2e-2 if on_gpu else 1e-5
    return held_to(limits, found)


def _attend(q: Any, k: Any, v: Any, segments: Segments, scaling: Any, window: Any) -> torch.Tensor:
    return attention.attention(torch.nn.Module(), q, k, v, None, sliding_window=window, segments=segments)[0]


def logprobs_check(device: str, setting: Setting) -> dict[str, Any]:
    """Log-probs and entropies without whole logits, with their gradients, against those from float32 logits."""
    torch.manual_seed(0)
    rows, dtype = (700, torch.bfloat16) if device == "cuda" else (40, torch.float32)
    hidden = torch.randn(rows, setting.hidden_size, device=device).to(dtype).requires_grad_()
    weight = (torch.randn(setting.vocabulary, setting.hidden_size, device=device) * 0.05).to(dtype).requires_grad_()
    targets = torch.randint(0, setting.vocabulary, (rows,), device=device)
    table = head_statistics(hidden, weight, None, targets, 0.7, with_entropy_gradient=True)
    (table[:, 0].mean() + 0.1 * table[:, 1].mean()).backward()
    plain, head = (one.detach().float().requires_grad_() for one in (hidden, weight))
    logits = torch.nn.functional.linear(plain, head)
    expected = statistics_from_logits(logits.to(dtype).float() if dtype != torch.float32 else logits, targets, 0.7)
    (expected[:, 0].mean() + 0.1 * expected[:, 1].mean()).backward()
    limit = 2e-2 if device == "cuda" else 1e-4
    found = {
        "log-probs": difference(table[:, 0].detach(), expected[:, 0].detach()),
        "entropies": difference(table[:, 1].detach(), expected[:, 1].detach()),
        "gradient of the states": difference(hidden.grad, plain.grad),
        "gradient of the head": difference(weight.grad, head.grad),
    }
    return held_to(dict.fromkeys(found, limit), found)


def engine_check(device: str, setting: Setting) -> dict[str, Any]:
    """Log-probs that the engine tells of what it has drawn, against those of a forward pass over it: with weights in
    bfloat16 on a GPU, and with weights in float32 whose products are in bfloat16, as training has them by default.

    Raises:
        AssertionError: they differ, or on a GPU the model is not sampled by segments and in captured graphs.
    """
    half = torch.autocast(device, torch.bfloat16)
    if device != "cuda":
        return _engine_check(device, setting, torch.float32, None, "")
    return _engine_check(device, setting, torch.bfloat16, None, "bfloat16: ") | _engine_check(
        device, setting, torch.float32, half, "float32, products in bfloat16: "
    )


def _engine_check(device: str, setting: Setting, dtype: torch.dtype, autocast: Any, title: str) -> dict[str, Any]:
    small = dataclasses.replace(setting, num_layers=min(4, setting.num_layers))
    model = make_model(small, device, dtype).eval()
    scorer = Scorer(model)
    engine = Engine(model, scorer)
    draw = np.random.default_rng(0)
    prompts = [draw.integers(3, setting.vocabulary, length) for length in (37, 5, 61)]
    new, group = min(48, setting.new_tokens), 4
    numbers = uniforms(0, range(3 * group), new)
    completions = engine.generate(model, prompts, group, Sampling(new, (7,)), numbers, autocast)
    assert device != "cuda" or engine.packed, f"{title}not sampled by segments"
    assert device != "cuda" or engine.captures, f"{title}captured graphs were refused"
    ids, masks, parents = [], [], []
    for index, prompt in enumerate(prompts):
        parent = len(ids)
        own_ids = completions.token_ids[index * group : (index + 1) * group]
        ids += [prompt, *own_ids]
        masks += [np.zeros(len(prompt), np.int8), *(np.ones(len(one), np.int8) for one in own_ids)]
        parents += [NO_PARENT, *[parent] * group]
    with torch.no_grad(), autocast or contextlib.nullcontext():
        told = scorer(model, pack(ids, masks, parents, 3).to(device)).logprobs.float().cpu()
    drawn = torch.from_numpy(np.concatenate(completions.logprobs))
    found = {
        f"{title}largest difference": float((told - drawn).abs().max()),
        f"{title}mean difference": float((told - drawn).abs().mean()),
    }
    limits = (0.5, 0.03) if device == "cuda" else (1e-4, 1e-5)
    return held_to(dict(zip(found, limits, strict=True)), found)


def documents(setting: Setting, count: int) -> PackedBatch:
    """A packed row of random documents."""
    draw = np.random.default_rng(0)
    ids = [draw.integers(3, setting.vocabulary, int(n)) for n in draw.integers(2, setting.row // count + 1, count)]
    masks = [np.ones(len(one), dtype=np.int8) for one in ids]
    for mask in masks:
        mask[0] = 0
    return pack(ids, masks, [NO_PARENT] * count, count)


@contextlib.contextmanager
def waiting_is_an_error(device: str) -> Any:
    """Inside, torch raises where the host waits for the GPU."""
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def waiting_check(device: str, setting: Setting, material: Path, seconds: float) -> dict[str, Any]:
    """A step without a wait, in the strict mode of torch; then where whole steps of a run wait, by file and line."""
    small = dataclasses.replace(setting, num_layers=min(2, setting.num_layers))
    model = make_model(small, device, torch.bfloat16 if device == "cuda" else torch.float32)
    scorer = Scorer(model)
    assert isinstance(scorer.head, TargetHead)
    batches = [documents(setting, 4) for _ in range(2)]
    for batch, strict in zip(batches, (False, True), strict=True):  # the first one loads kernels
        on_gpu = batch.pin_memory() if device == "cuda" else batch
        with waiting_is_an_error(device) if strict else contextlib.nullcontext():
            one = on_gpu.to(device, non_blocking=True)
            told = scorer(model, one)
            sft_loss(told.logprobs, told.entropy, told.is_argmax, "nll").terms[0].sum.backward()
    del model, scorer
    places: collections.Counter[str] = collections.Counter()
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run = own("sft", setting, material, seconds, SFT_WAYS["sft"])
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    for one in caught:
        if "synchroniz" in str(one.message):
            places[f"{one.filename}:{one.lineno}"] += 1
    return {
        "forward, loss and backward": "do not wait",
        "steps": run["steps"] + setting.skip,
        "waits of a whole run, loading and logging among them": dict(places.most_common()),
    }
