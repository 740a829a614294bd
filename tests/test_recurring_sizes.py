"""In half precision on a CPU the layers of a model see few sizes, and nothing of what fills a row up."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import make
from tiny import curve, run, write_base, write_preference
from torch import nn

from posttrain import attention
from posttrain.attention import _attend_per_segment
from posttrain.batch import NO_PARENT, PackedBatch, Segments, pack
from posttrain.recurring_sizes import MULTIPLE, compiles_for_sizes, filled, num_filling
from posttrain.reward_scoring import RewardScorer
from posttrain.scoring import Scorer
from posttrain.trainer_flags import EmbeddingNoise

LENGTHS, PARENTS = (30, 20, 25), (NO_PARENT, 0, 0)
CPU = torch.device("cpu")


def batch(lengths: tuple[int, ...] = LENGTHS, parents: tuple[int, ...] = PARENTS) -> PackedBatch:
    draw = np.random.default_rng(0)
    ids = [draw.integers(3, 97, n) for n in lengths]
    masks = [np.full(n, parent != NO_PARENT, dtype=np.int8) for n, parent in zip(lengths, parents, strict=True)]
    return pack(ids, masks, parents, num_groups=1)


def half(kind: str) -> Any:
    return torch.autocast("cpu", torch.bfloat16) if kind == "autocast" else contextlib.nullcontext()


def lengths_seen(module: nn.Module) -> list[int]:
    """Rows of each later call of a layer."""
    seen: list[int] = []
    module.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[-2]))
    return seen


def test_multiples() -> None:
    assert [num_filling(size) for size in (1, 63, 64, 65)] == [63, 1, 0, 63]
    exact = batch((64, 32, 32))
    assert filled(exact)[2] is exact.segments


def test_a_segment_behind_the_row_is_one_that_nothing_sees() -> None:
    row = batch()
    ids, positions, segments = filled(row)
    assert len(ids) == len(positions) == sum(segments.lengths) == 2 * MULTIPLE
    assert torch.equal(ids[:75], row.input_ids) and torch.equal(positions[:75], row.position_ids)
    assert not positions[75:].any()  # a model with few positions has this one
    assert segments == Segments((30, 20, 25, 53), (NO_PARENT, 0, 0, NO_PARENT))


def test_where_kernels_are_compiled() -> None:
    assert compiles_for_sizes(CPU, torch.bfloat16) and not compiles_for_sizes(CPU, torch.float32)
    assert not compiles_for_sizes(torch.device("cuda"), torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert compiles_for_sizes(CPU, torch.float32)


@pytest.mark.parametrize("kind", ["autocast", "bfloat16"])
def test_layers_see_multiples_and_the_results_are_those_of_float32(kind: str) -> None:
    """Log-probs within the rounding of bfloat16 of those in float32, where rows are left as they are."""
    model, row = make("llama"), batch()
    scorer, seen = Scorer(model), lengths_seen(model.model.layers[1].mlp)
    exact = scorer(model, row).logprobs.detach()
    assert seen == [75]
    if kind == "bfloat16":
        model.to(torch.bfloat16)
        scorer = Scorer(model)
    seen.clear()
    with half(kind):
        logprobs = scorer(model, row).logprobs
    assert seen == [128] and logprobs.shape == exact.shape
    torch.testing.assert_close(logprobs, exact, atol=0.15, rtol=0.05)
    logprobs.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_gradients_are_those_of_a_row_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def gradients() -> torch.Tensor:
        model = make("qwen3")
        scorer = Scorer(model)
        with half("autocast"):
            statistics = scorer(model, batch(), with_entropy_gradient=True)
        (statistics.logprobs.sum() + 0.3 * statistics.entropy.sum()).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    with_filling = gradients()
    monkeypatch.setattr("posttrain.recurring_sizes.MULTIPLE", 1)
    as_it_is = gradients()
    assert ((with_filling - as_it_is).norm() / as_it_is.norm()).item() < 0.01


def test_scores_of_a_reward_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_labels": 1, "pad_token_id": 0}
    model = LlamaForSequenceClassification(LlamaConfig(**sizes, **heads, initializer_range=0.3)).eval()
    scorer, seen = RewardScorer(model), lengths_seen(model.model.layers[0].mlp)
    with torch.no_grad():
        exact = scorer(model, batch())
        with half("autocast"):
            scores = scorer(model, batch())
    assert seen == [75, 128]
    torch.testing.assert_close(scores, exact, atol=0.05, rtol=0.05)


def test_a_router_loss_counts_the_tokens_of_the_row_alone() -> None:
    for wants, length in ((True, 75), (False, 128)):
        model = make("mixtral")
        model.config.output_router_logits = wants
        scorer, seen = Scorer(model), lengths_seen(model.model.layers[0].self_attn.q_proj)
        with torch.no_grad(), half("autocast"):
            scorer(model, batch())
        assert seen == [length]


@pytest.mark.parametrize("kind", ["autocast", "bfloat16"])
def test_attention_is_computed_in_float32(kind: str) -> None:
    """Rounded once, when it is done: equal to attention in float32 of what was passed, to the bit."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, 75, 8).bfloat16() for heads in (4, 2, 2))
    if kind == "autocast":  # rotary embeddings leave queries and keys in float32 there
        query, key = query.float() * 1.01, key.float() * 1.01
    segments = batch().segments
    with half(kind):
        output, _ = attention.attention(nn.Module(), query, key, value, None, segments=segments)
    exact = _attend_per_segment(query.float(), key.float(), value.float(), segments, None, 0.0, None)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, exact.bfloat16())


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU trains in float32")
@pytest.mark.parametrize("words", [[], ["--use_peft", "--lora_target_modules", "q_proj"]])
def test_rows_are_filled_up_in_a_run_with_mixed_precision(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the policy, and those of the reference, which is rounded as it is: no pair has a margin at first."""
    seen: list[int] = []

    def noted(row: PackedBatch) -> Any:
        ids, positions, segments = filled(row)
        seen.append(len(ids))
        return ids, positions, segments

    monkeypatch.setattr("posttrain.scoring.filled", noted)
    base, rows = write_base(tmp_path / "base"), write_preference(tmp_path / "rows.jsonl")
    state = run("dpo", base, rows, tmp_path / "out", "--bf16", "true", "--max_steps", "1", *words)
    assert len(seen) == 2 and seen[0] == seen[1] and seen[0] % MULTIPLE == 0
    assert curve(state, "loss", "rewards/margins") == [[pytest.approx(0.693147, abs=1e-6), 0]]


def test_noise_on_embeddings_of_a_row_that_is_filled_up() -> None:
    """alpha / sqrt(L · H): alpha 3, H 4 and sequences of 50 and 55 tokens."""
    model, table, row = nn.Module(), nn.Embedding(97, 4), batch()
    model.get_input_embeddings = lambda: table  # type: ignore[assignment]
    noise = EmbeddingNoise(3.0)
    noise.attach(model)
    noise.batch = row
    ids = filled(row)[0][None]
    drawn = torch.stack([table(ids) - nn.functional.embedding(ids, table.weight) for _ in range(200)])[:, 0, :75]
    largest = drawn.abs().amax((0, 2))
    assert largest[30:50].max().item() == pytest.approx(3 / (50 * 4) ** 0.5, rel=0.01)
    assert largest[50:].max().item() == pytest.approx(3 / (55 * 4) ** 0.5, rel=0.01)
