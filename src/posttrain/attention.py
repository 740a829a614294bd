"""Attention by segments, registered with transformers under the name "posttrain".

Every segment's queries attend to the keys of its parent and its own, causally, aligned at the bottom right. With
parent and child laid end to end that is the plain causal mask, with or without a sliding window, so any kernel will do:
the variable-length one of torch on CUDA in half precision, and elsewhere torch's scaled_dot_product_attention, one
call a segment; where completions share a long prompt, one call for all of them to the prompt and one each to themselves
(shared_prefix.py). A forward pass without segments (generation, a plain call) gets what transformers' sdpa does.

While completions are sampled, a `DecodingState` comes along too: the pass over the packed prompts is recorded in it,
and from then on it attends for one token of every completion.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from posttrain.batch import NO_PARENT, Segments
from posttrain.decoding import DecodingState, in_type_of_products
from posttrain.recurring_sizes import compiles_for_sizes
from posttrain.shared_prefix import attend_in_parts, attends_in_parts

NAME = "posttrain"

# Arguments of other models' attention that change its result and that no kernel here computes: attention sinks,
# soft-capping, additive biases. A model that uses one goes through the padded fallback.
_UNSUPPORTED = ("s_aux", "softcap", "position_bias")

_by_segments: ContextVar[bool] = ContextVar("by_segments", default=False)


class UnsupportedAttentionError(NotImplementedError):
    """The model's attention has a feature that attention by segments lacks."""


@contextmanager
def masks_from_segments() -> Iterator[None]:
    """Inside, models build no attention masks: segments or a decoding state, keywords of the forward call, take their
    place."""
    token = _by_segments.set(True)
    try:
        yield
    finally:
        _by_segments.reset(token)


def no_mask(device: torch.device) -> torch.Tensor:
    """What a forward pass with segments, or with a decoding state, is given as its mask. Of four dimensions, so that
    models take it for a finished one and hand it on to attention, which does not read it; without one, they would look
    for documents in the position ids, and wait for the GPU to tell."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)


def attention_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """No mask where segments stand for it, transformers' mask for sdpa elsewhere."""
    return None if _by_segments.get() else sdpa_mask(*args, **kwargs)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    segments: Segments | None = None,
    decoding: DecodingState | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What a transformers attention layer calls.

    Args:
        module: the layer.
        query: (1, heads, T, D); with a decoding state and no segments (R, heads, 1, D), a token of every completion.
        key: (1, key heads, T, D); key heads divides heads.
        value: the same shape as key.
        attention_mask: None where segments are given.
        scaling: of the scores; 1/sqrt(D) if None.
        dropout: probability with which a weight is dropped.
        sliding_window: a token sees at most this many tokens, itself among them.
        segments: how the row is cut up; None means an ordinary call, or one token of every completion.
        decoding: what is remembered of the completions that are being sampled.

    Returns:
        (1, T, heads, D) and None, in transformers' order of dimensions.

    Raises:
        UnsupportedAttentionError: the layer asks for something that this function lacks.
    """
    if segments is None and decoding is None:
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            sliding_window=sliding_window,
            **kwargs,
        )
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise UnsupportedAttentionError(f"attention by segments has no {name}")
    if decoding is not None:
        layer: Any = module.layer_idx
        if segments is None:
            return decoding.attend(layer, query, key, value, scaling, sliding_window), None
        decoding.record(layer, key, value, scaling, sliding_window)
    assert segments is not None
    if query.is_cuda:
        query, key, value = (in_type_of_products(tensor) for tensor in (query, key, value))
    if _takes_varlen(query, value, dropout):
        return _attend_varlen(query, key, value, segments, scaling, sliding_window), None
    if not compiles_for_sizes(query.device, query.dtype):
        return _attend(query, key, value, segments, scaling, dropout, sliding_window), None
    # In float32 a CPU's kernels need not compile code for every length of a segment.
    with torch.autocast("cpu", enabled=False):
        output = _attend(query.float(), key.float(), value.float(), segments, scaling, dropout, sliding_window)
    return output.to(value.dtype), None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    scaling: float | None,
    dropout: float,
    window: int | None,
) -> torch.Tensor:
    if dropout == 0.0 and attends_in_parts(query, key, segments, window):
        return attend_in_parts(query, key, value, segments, scaling).transpose(1, 2)
    return _attend_per_segment(query, key, value, segments, scaling, dropout, window)


def _takes_varlen(query: torch.Tensor, value: torch.Tensor, dropout: float) -> bool:
    """What torch checks in its kernel (FlashAttention), which a trial in float32 does not meet."""
    size = query.shape[-1]
    fits = query.dtype in (torch.float16, torch.bfloat16) and size == value.shape[-1] <= 256 and size % 8 == 0
    return query.is_cuda and fits and dropout == 0.0 and _capability(query.device) >= (8, 0)


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _attend_per_segment(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    scaling: float | None,
    dropout: float,
    window: int | None,
) -> torch.Tensor:
    # split, not slices: the gradient of a split is one concatenation, that of a slice a whole row of zeros.
    lengths = list(segments.lengths)
    if query.is_cuda and query.shape[1] != key.shape[1]:
        # There all kernels but FlashAttention's, which does not come here, have scores in memory for grouped heads.
        key, value = (tensor.repeat_interleave(query.shape[1] // key.shape[1], 1) for tensor in (key, value))
    queries, keys, values = (tensor.split(lengths, dim=2) for tensor in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    outputs = []
    for index, parent in enumerate(segments.parents):
        q, k, v = queries[index], keys[index], values[index]
        if parent != NO_PARENT:
            k, v = torch.cat([keys[parent], k], dim=2), torch.cat([values[parent], v], dim=2)
        window_cuts = window is not None and window < k.shape[2]
        plain = parent == NO_PARENT and not window_cuts
        mask = None
        if not plain:
            mask = segments.added_mask(q.shape[2], k.shape[2], window if window_cuts else None, q.device, q.dtype)
        outputs.append(
            scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=plain, scale=scaling, enable_gqa=grouped
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _attend_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    cu_queries, cu_keys, key_index = segments.gather_indices(query.device)
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # (T, heads, D)
    if segments.has_parents:
        k, v = k.index_select(0, key_index), v.index_select(0, key_index)
    output = _varlen()(
        q,
        k,
        v,
        cu_queries,
        cu_keys,
        max(segments.lengths),
        max(segments.key_lengths),
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
    )
    return output[None]


@functools.cache
def _varlen() -> Any:
    from torch.nn.attention.varlen import varlen_attn

    # Before torch 2.13 the kernel takes grouped heads without being told.
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        return functools.partial(varlen_attn, enable_gqa=True)
    return varlen_attn


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, attention_mask)
