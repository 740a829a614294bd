"""What gradient checkpointing keeps and computes again: the same gradients, less memory, the right operations."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import SHAPE, make
from helpers_flags import message, parse
from test_packing_equality import Sequences, score, shared, trees  # noqa: F401 (trees is a fixture)
from tiny import run, write_base, write_preference, write_sft
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from posttrain.batch import NO_PARENT, pack
from posttrain.models import checkpoint_activations
from posttrain.recompute import KEPT, _draws, recompute_less
from posttrain.scoring import Scorer


class Counted(TorchDispatchMode):
    """How often each operation runs."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.name()] += 1
        return func(*args, **(kwargs or {}))


def attentions(counted: Counted) -> int:
    return counted.counts["aten::_scaled_dot_product_flash_attention_for_cpu"]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3, sliding window", "mixtral"])
def test_every_way_gives_the_same_bits(family: str, trees: Sequences) -> None:  # noqa: F811
    model: Any = make(family)
    scorer = Scorer(model)
    model.train()
    batch = shared(trees)
    counts: dict[str, Counted] = {}
    with Counted() as counts["kept"]:
        expected_table, expected = score(model, scorer, [batch])
    for what in KEPT:
        checkpoint_activations(model, on=True)
        recompute_less(model, what, {})
        with Counted() as counts[what]:
            table, gradients = score(model, scorer, [batch])
        assert torch.equal(table, expected_table)
        assert all(torch.equal(a, e) for a, e in zip(gradients, expected, strict=True))
    once = attentions(counts["kept"])
    assert once > 0
    assert [attentions(counts[what]) for what in KEPT] == [2 * once, once, once]
    products = [counts[what].counts["aten::mm"] for what in ("kept", *KEPT)]
    assert products[0] == products[3] < products[1] == products[2]


def test_random_numbers_of_dropout_are_drawn_again_in_their_order(trees: Sequences) -> None:  # noqa: F811
    """Attention that drops weights runs again, though another one would be kept: dropout behind it has to draw what it
    drew."""
    model: Any = make("llama")
    scorer = Scorer(model)
    model.train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.3
        layer.mlp.register_forward_hook(lambda module, inputs, output: torch.dropout(output, 0.3, True))
    results = []
    for what in (None, *KEPT):
        if what is not None:
            checkpoint_activations(model, on=True)
            recompute_less(model, what, {})
        torch.manual_seed(3)
        results.append(score(model, scorer, [shared(trees)]))
    for table, gradients in results[1:]:
        assert torch.equal(table, results[0][0])
        assert all(torch.equal(a, e) for a, e in zip(gradients, results[0][1], strict=True))


def test_the_more_is_computed_again_the_less_is_held() -> None:
    shape = SHAPE | {"num_hidden_layers": 6, "max_position_embeddings": 600}
    model: Any = LlamaForCausalLM(LlamaConfig(**shape))
    scorer = Scorer(model)
    model.train()
    tokens = np.arange(600) % 50 + 3
    batch = pack([tokens], [np.r_[0, np.ones(599, dtype=np.int64)]], [NO_PARENT], num_groups=1)
    held = {}
    for what in (None, *KEPT):
        checkpoint_activations(model, on=what is not None)
        if what is not None:
            recompute_less(model, what, {})
        held[what] = held_after_forward(lambda: scorer(model, batch).logprobs.sum())
    assert held["layers"] < held["all_but_attention"] < held["elementwise"] < held[None]
    # Beside the inputs of layers: attention's output, and one number a query and head.
    hidden, heads, inner = shape["hidden_size"], shape["num_attention_heads"], shape["intermediate_size"]
    each = 600 * 4 * (hidden + heads)
    assert held["all_but_attention"] - held["layers"] == pytest.approx(6 * each, rel=0.05)
    # Queries, keys and values of half the heads, what attention and the feed-forward network give, its two inner ones.
    products = 600 * 4 * (hidden + 2 * hidden // 2 + 2 * hidden + 2 * inner)
    assert held["elementwise"] - held["all_but_attention"] == pytest.approx(6 * products, rel=0.05)


def held_after_forward(run: Any) -> int:
    """Bytes of tensors that a forward pass leaves behind for the backward pass, as torch's profiler counts them."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        loss = run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    del loss
    return sum(event.nbytes() for event in events)


def test_a_layer_that_draws_random_numbers_in_attention_is_not_kept() -> None:
    kernel = torch.ops.aten._scaled_dot_product_flash_attention.default
    query = torch.empty(1, 1, 1, 1)
    assert _draws(kernel, (query, query, query, 0.1), {})
    assert _draws(kernel, (query, query, query), {"dropout_p": 0.1})
    assert not _draws(kernel, (query, query, query), {})
    assert not _draws(torch.ops.aten.mm.default, (query, query), {})


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--recompute elementwise --no_gradient_checkpointing", "and that is switched off"),
        ("--recompute elementwise --gradient_checkpointing_kwargs use_reentrant=true", "needs use_reentrant=false"),
        ("--recompute elementwise --gradient_checkpointing_kwargs offload=true", "leaves on the GPU what"),
        ("--gradient_checkpointing_kwargs every_n_layers=0", "must be a whole number of at least 1"),
        ("--recompute attention", "all_but_attention"),
    ],
)
def test_what_does_not_go_together_is_told(words: str, expected: str) -> None:
    assert expected in message("sft", *words.split())


def test_settings_of_a_newer_transformers_are_told_to_an_older_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.config.rules.version", lambda package: "5.17.0")
    words = "--gradient_checkpointing_kwargs every_n_layers=2"
    assert "every_n_layers needs transformers 5.23 or newer" in message("sft", *words.split())


def test_to_recompute_less_is_to_recompute() -> None:
    assert parse("sft", "--recompute", "elementwise").recomputes_activations(on_gpu=False)
    assert not parse("sft").recomputes_activations(on_gpu=False)
    assert parse("sft").recomputes_activations(on_gpu=True)
    assert not parse("sft", "--no_gradient_checkpointing").recomputes_activations(on_gpu=True)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft, of transformers
@pytest.mark.parametrize(
    ("method", "what", "words"), [("sft", "elementwise", ""), ("dpo", "all_but_attention", "--use_peft")]
)
def test_a_run_gives_the_same_weights(method: str, what: str, words: str, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    rows = (write_sft if method == "sft" else write_preference)(tmp_path / "rows.jsonl")
    runs = {}
    with Counted() as plain:
        run(method, base, rows, tmp_path / "plain", *words.split())
    with Counted() as selective:
        run(method, base, rows, tmp_path / "selective", *words.split(), "--recompute", what)
    for name in ("plain", "selective"):
        runs[name] = next((tmp_path / name).glob("*model.safetensors")).read_bytes()
    assert runs["plain"] == runs["selective"]
    assert attentions(selective) == attentions(plain) > 0
    assert selective.counts["aten::silu"] > plain.counts["aten::silu"]
