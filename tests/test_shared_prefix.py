"""Attention to a shared prompt and to oneself in two calls, against one call over both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from families import make
from test_head_memory import Largest
from test_packing_equality import (  # trees is a fixture
    Sequences,
    assert_same,
    from_plain_logits,
    score,
    shared,
    trees,  # noqa: F401
    unshared,
)

from posttrain import attention, shared_prefix
from posttrain.batch import NO_PARENT, Segments, pack
from posttrain.models import checkpoint_activations
from posttrain.recompute import recompute_less
from posttrain.scoring import Scorer

ROWS = {
    "a document, a prompt with three, one of them empty, a prompt with one": Segments(
        (5, 33, 7, 0, 12, 40, 3), (NO_PARENT, NO_PARENT, 1, 1, 1, NO_PARENT, 5)
    ),
    "two prompts first": Segments((9, 6, 4, 5, 3), (NO_PARENT, NO_PARENT, 0, 0, 1)),
}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_two_calls_give_what_one_gives(row: str, scaling: float | None) -> None:
    segments = ROWS[row]
    torch.manual_seed(0)
    tokens = sum(segments.lengths)
    query, key, value = (torch.randn(1, heads, tokens, 8, requires_grad=True) for heads in (4, 2, 2))
    upstream = torch.randn(1, tokens, 4, 8)
    one = attention._attend_per_segment(query, key, value, segments, scaling, 0.0, None)
    expected = torch.autograd.grad(one, (query, key, value), upstream)
    two = shared_prefix.attend_in_parts(query, key, value, segments, scaling).transpose(1, 2)
    torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-5)
    for actual, wanted in zip(torch.autograd.grad(two, (query, key, value), upstream), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_model_gives_the_same(family: str, trees: Sequences, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(shared_prefix, "LARGE", 0)
    calls: list[Any] = []
    in_parts = shared_prefix.attend_in_parts
    monkeypatch.setattr(attention, "attend_in_parts", lambda *args: calls.append(1) or in_parts(*args))
    model: Any = make(family)
    expected, expected_gradients = from_plain_logits(model, unshared(trees))
    scorer = Scorer(model)
    calls.clear()
    model.train()
    for what in (None, "layers", "all_but_attention", "elementwise"):
        checkpoint_activations(model, on=what is not None)
        if what is not None:
            recompute_less(model, what, {})
        table, gradients = score(model, scorer, [shared(trees)])
        torch.testing.assert_close(table[:, :2], expected, rtol=1e-5, atol=1e-5)
        assert_same(gradients, expected_gradients)
    assert calls


def test_the_batch_picks_by_what_gathering_takes() -> None:
    small = Segments((100, *[20] * 8), (NO_PARENT, *[0] * 8))
    # 64 completions of 500 tokens of a prompt of 8,000: keys, values and a mask each, in float32.
    large = Segments((8000, *[500] * 64), (NO_PARENT, *[0] * 64))
    assert shared_prefix.bytes_of_gathering(large, 128, 4) == 64 * 4 * 8500 * (2 * 128 + 500)
    query = key = torch.empty(1, 2, 0, 64)
    assert not shared_prefix.attends_in_parts(query, key, small, None)
    assert shared_prefix.attends_in_parts(query, key, large, None)
    assert shared_prefix.attends_in_parts(query, key, large, 8500)
    assert not shared_prefix.attends_in_parts(query, key, large, 8499)  # a window that cuts
    apart = Segments((8000, 500, 8000, *[500] * 64), (NO_PARENT, 0, NO_PARENT, *[0] * 64))
    assert not shared_prefix.attends_in_parts(query, key, apart, None)
    assert not shared_prefix.attends_in_parts(query, key, Segments((32_768,), (NO_PARENT,)), None)


@pytest.mark.parametrize("lengths", [(1024,), (200, 300, 524), (600, 200, 224)])
def test_scores_of_a_row_are_never_held_whole(lengths: tuple[int, ...]) -> None:
    """One document, several of them, and a prompt with two completions: no tensor has a number a pair of tokens."""
    parents = [0, 0] if lengths[0] == 600 else [NO_PARENT] * (len(lengths) - 1)
    ids = [np.arange(length) % 90 for length in lengths]
    masks = [np.full(length, index > 0 or len(lengths) == 1) for index, length in enumerate(lengths)]
    for mask in masks:
        mask[0] = False
    model: Any = make("llama")
    scorer = Scorer(model)
    model.train()
    with Largest() as found:
        scorer(model, pack(ids, masks, [NO_PARENT, *parents], num_groups=1)).logprobs.sum().backward()
    pairs = sum(length**2 for length in lengths)
    assert found.numbers < pairs / 2 if len(lengths) == 3 else found.numbers < pairs / 8


def test_torch_finds_nothing_wrong_with_the_operation() -> None:
    query = torch.randn(1, 2, 9, 4, requires_grad=True)
    arguments = (query, query.detach()[:, :1], query.detach()[:, :1], [4, 3, 2], [NO_PARENT, 0, 0], None)
    torch.library.opcheck(shared_prefix._attend, arguments, test_utils=("test_schema", "test_faketensor"))
