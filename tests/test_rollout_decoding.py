"""Attention of one token a row against the plain one over each row's own keys, as rows leave."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from posttrain import attention, decoding
from posttrain.attention import UnsupportedAttentionError
from posttrain.decoding import DecodingState

HEADS, SIZE, VALUE_SIZE = 4, 8, 6


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("window", [None, 1, 3, 6, 100])
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("lengths", [(5, 1, 3), (4, 4, 4)])
def test_it_is_attention_over_prompt_and_completion(
    lengths: tuple[int, ...], key_heads: int, window: int | None, static: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "COLUMNS", 3)
    state = DecodingState(lengths, 3, 7, torch.device("cpu"), static)
    keys = torch.randn(1, key_heads, sum(lengths), SIZE)
    values = torch.randn(1, key_heads, sum(lengths), VALUE_SIZE)
    state.record(0, keys, values)
    # Each row's keys and values, prompt first, grown by hand.
    held = [pair for pair in zip(keys[0].split(lengths, 1), values[0].split(lengths, 1), strict=True) for _ in range(3)]
    leaving = {1: [0, 1, 2, 4, 5, 6, 7, 8], 3: [0, 2, 3, 4], 5: [1], 6: [0]}
    for step in range(7):
        if step in leaving:
            state.keep(np.array(leaving[step]))
            held = [held[row] for row in leaving[step]]
        assert state.num_rows == len(held)
        query = torch.randn(len(held), HEADS, 1, SIZE)
        key, value = torch.randn(len(held), key_heads, 1, SIZE), torch.randn(len(held), key_heads, 1, VALUE_SIZE)
        held = [
            (torch.cat([k, new_k], 1), torch.cat([v, new_v], 1))
            for (k, v), new_k, new_v in zip(held, key, value, strict=True)
        ]
        state.begin_step()
        actual = state.attend(0, query, key, value, 0.3, window)
        state.end_step()
        for row, (k, v) in enumerate(held):
            seen = slice(None if window is None else max(0, k.shape[1] - window), None)
            expected = scaled_dot_product_attention(
                query[row], k[:, seen], v[:, seen], scale=0.3, enable_gqa=key_heads != HEADS
            )
            torch.testing.assert_close(actual[row, 0], expected[:, 0])


def test_half_precision_is_what_is_kept_inside_autocast() -> None:
    state = DecodingState((3, 2), 2, 2, torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        state.record(0, torch.randn(1, 2, 5, SIZE), torch.randn(1, 2, 5, SIZE))
        output = state.attend(
            0, torch.randn(4, 4, 1, SIZE), torch.randn(4, 2, 1, SIZE), torch.randn(4, 2, 1, SIZE), None, None
        )
    assert output.dtype == torch.bfloat16
    for tensor in (*state._prompts[0], *(own[:, :1] for own in state._own[0])):
        # Multiplied in float32 on a CPU, and held in that, but with no more digits.
        assert tensor.dtype == torch.float32 and torch.equal(tensor, tensor.bfloat16().float())


@pytest.mark.parametrize("feature", ["s_aux", "softcap", "position_bias"])
def test_what_it_lacks_is_refused(feature: str) -> None:
    state = DecodingState((3,), 1, 2, torch.device("cpu"))
    tensor = torch.randn(1, 2, 1, SIZE)
    with pytest.raises(UnsupportedAttentionError, match=feature):
        attention.attention(torch.nn.Module(), tensor, tensor, tensor, None, decoding=state, **{feature: 1.0})
