"""The two ways of attention by segments against a dense mask written out token by token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention

from posttrain import attention
from posttrain.attention import UnsupportedAttentionError, _attend_per_segment, _attend_varlen
from posttrain.batch import NO_PARENT, Segments, pack

LENGTHS, PARENTS = (6, 3, 5, 4, 2), (NO_PARENT, 0, 0, NO_PARENT, 3)


def tensors(key_heads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    total = sum(LENGTHS)
    return torch.randn(1, 4, total, 8), torch.randn(1, key_heads, total, 8), torch.randn(1, key_heads, total, 8)


def dense(window: int | None) -> torch.Tensor:
    """(T, T): may token i see token j? By the definition: own segment or parent, no later, within the window."""
    segment = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    position = pack([np.arange(n) for n in LENGTHS], [np.zeros(n) for n in LENGTHS], PARENTS, 2).position_ids
    total = len(segment)
    mask = torch.zeros(total, total, dtype=torch.bool)
    for i in range(total):
        for j in range(total):
            related = segment[j] in (segment[i], PARENTS[segment[i]])
            distance = int(position[i] - position[j])
            mask[i, j] = related and distance >= 0 and (window is None or distance < window)
    return mask


def varlen_by_its_documentation(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_q: torch.Tensor, cu_k: torch.Tensor,
    max_q: int, max_k: int, *, scale: float | None, window_size: tuple[int, int],
) -> torch.Tensor:  # fmt: skip
    """What torch's kernel promises, (T, heads, D) in and out: bottom-right alignment, (left, right) windows."""
    pieces = []
    repeats = query.shape[1] // key.shape[1]
    for s in range(len(cu_q) - 1):
        q = query[cu_q[s] : cu_q[s + 1]].transpose(0, 1)
        k, v = (x[cu_k[s] : cu_k[s + 1]].repeat_interleave(repeats, 1).transpose(0, 1) for x in (key, value))
        assert q.shape[1] <= max_q and k.shape[1] <= max_k
        ahead = torch.arange(k.shape[1])[None] - (torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1])
        left, right = window_size
        mask = (ahead <= right) & ((ahead >= -left) | torch.tensor(left < 0))
        pieces.append(scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(0, 1))
    return torch.cat(pieces)


@pytest.mark.parametrize("window", [None, 4, 100])
@pytest.mark.parametrize("key_heads", [4, 2])
def test_both_ways_are_the_dense_mask(window: int | None, key_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_varlen", lambda: varlen_by_its_documentation)
    query, key, value = tensors(key_heads)
    segments = pack([np.arange(n) for n in LENGTHS], [np.zeros(n) for n in LENGTHS], PARENTS, 2).segments
    expected = scaled_dot_product_attention(
        query, key, value, attn_mask=dense(window), scale=0.5, enable_gqa=key_heads != 4
    ).transpose(1, 2)
    per_segment = _attend_per_segment(query, key, value, segments, 0.5, 0.0, window)
    varlen = _attend_varlen(query, key, value, segments, 0.5, window)
    torch.testing.assert_close(per_segment, expected)
    torch.testing.assert_close(varlen, expected)


@pytest.mark.parametrize("feature", ["s_aux", "softcap", "position_bias"])
def test_what_it_lacks_is_refused(feature: str) -> None:
    query, key, value = tensors(4)
    segments = pack([np.arange(n) for n in LENGTHS], [np.zeros(n) for n in LENGTHS], PARENTS, 2).segments
    extra: dict[str, Any] = {feature: 1.0}
    with pytest.raises(UnsupportedAttentionError, match=feature):
        attention.attention(torch.nn.Module(), query, key, value, None, segments=segments, **extra)


@pytest.mark.parametrize(
    ("sizes", "capability", "takes"),
    [
        ((8, 8), (8, 0), True),
        ((12, 12), (9, 0), False),  # not a multiple of 8
        ((24, 16), (9, 0), False),  # values narrower than keys
        ((8, 8), (7, 5), False),  # a GPU before Ampere
    ],
)
def test_on_a_gpu_autocast_takes_the_kernel_of_half_precision(
    sizes: tuple[int, int], capability: tuple[int, int], takes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers rotate queries and keys in float32 there, which that kernel does not take. On tensors without memory."""
    seen: list[torch.dtype] = []

    def kernel(*tensors: Any) -> torch.Tensor:
        seen.extend(tensor.dtype for tensor in tensors[:3])
        return tensors[0]

    monkeypatch.setattr(attention, "_attend_varlen", kernel)
    monkeypatch.setattr(attention, "scaled_dot_product_attention", lambda query, key, value, **how: value)
    monkeypatch.setattr(attention, "_capability", lambda device: capability)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: torch.bfloat16)
    segments = Segments(tuple(LENGTHS), (NO_PARENT,) * len(LENGTHS))
    with FakeTensorMode():
        shape = (1, 2, sum(LENGTHS))
        query, key = torch.empty(*shape, sizes[0], device="cuda"), torch.empty(*shape, sizes[0], device="cuda")
        value = torch.empty(*shape, sizes[1], device="cuda", dtype=torch.bfloat16)
        output, _ = attention.attention(torch.nn.Module(), query, key, value, None, segments=segments)
    assert seen == ([torch.bfloat16] * 3 if takes else [])
    assert takes or output.shape == (1, sum(LENGTHS), 2, sizes[1])


def test_on_a_gpu_no_kernel_but_that_one_is_given_grouped_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[int, int]] = []

    def kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        given.append((query.shape[1], key.shape[1]))
        assert not kwargs["enable_gqa"]
        return query

    monkeypatch.setattr(attention, "scaled_dot_product_attention", kernel)
    segments = Segments(tuple(LENGTHS), (NO_PARENT,) * len(LENGTHS))
    with FakeTensorMode():
        query = torch.empty(1, 4, sum(LENGTHS), 8, device="cuda")
        key = torch.empty(1, 2, sum(LENGTHS), 8, device="cuda")
        attention.attention(torch.nn.Module(), query, key, key, None, segments=segments)
    assert given == [(4, 4)] * len(LENGTHS)
