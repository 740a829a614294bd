"""Compiled layers: one compilation for all layers and lengths, the same numbers, and sampling without them. Dynamo's
"eager" backend runs the graphs as they were traced, without a compiler."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import VOCAB, make
from tiny import curve, run, run_policy, write_base, write_prompts, write_sft
from torch._dynamo.utils import counters
from transformers import AttentionInterface

from posttrain import attention
from posttrain.batch import NO_PARENT, PackedBatch, pack
from posttrain.compiled import as_written, compile_layers
from posttrain.models import checkpoint_activations
from posttrain.scoring import Scorer

# A warning that dynamo sets off by itself as it looks at a tensor.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@pytest.fixture(autouse=True)
def apart() -> Any:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    AttentionInterface.register(attention.NAME, attention.attention)


def documents(*lengths: int) -> PackedBatch:
    draw = np.random.default_rng(0)
    ids = [draw.integers(3, VOCAB, length) for length in lengths]
    masks = [np.arange(length) > 0 for length in lengths]
    return pack(ids, masks, [NO_PARENT] * len(ids), len(ids))


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


@pytest.mark.parametrize("recomputed", [False, True])
def test_one_compilation_serves_all_layers_and_lengths(recomputed: bool) -> None:
    plain = make("qwen3").train()
    model = copy.deepcopy(plain)
    scorers = Scorer(plain), Scorer(model)
    names = list(model.state_dict())
    compile_layers(model, "eager", recomputes=recomputed)
    assert list(model.state_dict()) == names
    for one in (plain, model):
        checkpoint_activations(one, recomputed)
    counts = []
    for lengths in ((9, 5), (4, 8, 2, 3), (21,), (30, 2, 17, 1, 6)):
        batch = documents(*lengths)
        told = []
        for one, scorer in zip((plain, model), scorers, strict=True):
            one.zero_grad()
            told.append(scorer(one, batch).logprobs)
            told[-1].sum().backward()
        torch.testing.assert_close(told[1], told[0], rtol=1e-5, atol=1e-5)
        for a, b in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)
        counts.append(graphs())
    # What stands before and after attention, and with recomputation the parts of a layer, for both layers the same; and
    # of the head, statistics and gradient.
    assert set(counts) == {counts[0]} and 4 <= counts[0] <= 8, counts


def test_inside_of_as_written_nothing_is_compiled() -> None:
    model = make("qwen2")
    scorer, batch = Scorer(model), documents(5, 3)
    compile_layers(model, "eager")
    with as_written(model), torch.no_grad():
        model(input_ids=batch.input_ids[None], use_cache=False)
    assert graphs() == 0
    with torch.no_grad():
        scorer(model, batch)
    assert graphs() > 0


def test_a_model_without_layers_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    compile_layers(torch.nn.Linear(2, 2), "eager")
    assert "--torch_compile: Linear has no layers to compile" in caplog.text


def test_a_run_gives_the_losses_of_one_that_is_not_compiled(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    rows, prompts = write_sft(tmp_path / "sft.jsonl"), write_prompts(tmp_path / "prompts.jsonl")
    plain = curve(run("sft", base, rows, tmp_path / "plain"), "loss", "grad_norm")
    assert graphs() == 0
    compiled = curve(run("sft", base, rows, tmp_path / "c", "--torch_compile_backend", "eager"), "loss", "grad_norm")
    assert graphs() > 0
    np.testing.assert_allclose(compiled, plain, rtol=1e-4)
    drawn = run_policy("grpo", base, prompts, tmp_path / "grpo")
    words = ("--torch_compile_backend", "eager", "--gradient_checkpointing")
    again = run_policy("grpo", base, prompts, tmp_path / "grpo-c", *words)
    np.testing.assert_allclose(curve(again, "reward"), curve(drawn, "reward"), rtol=1e-6)
