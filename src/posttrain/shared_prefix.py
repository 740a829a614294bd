"""Attention of completions to a long prompt that they share, on a CPU, without the prompt's keys once for each of them.

The queries of all completions attend to the prompt in one call, without a mask, and to their own completion in another,
causally. With o_i = softmax(S_i) V_i and l_i = log Σ exp(S_i) of the two parts, attention to both is
o = Σ exp(l_i - l) o_i, where l = log Σ exp(l_i). The backward pass of a part needs no more than o and l of the
whole: the probabilities are exp(S_i - l), and the gradient of the scores takes Σ o · do of the whole (FlashAttention-2,
arXiv 2307.08691, section 3.1.2; so it is done in ring attention, arXiv 2310.01889).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from posttrain.batch import NO_PARENT, Segments

# Bytes that laying parents beside their children takes in a layer, from which on two calls take its place: below, one
# call a completion is about as fast, and its results have been the same for long (benchmarks/long_sequences.py).
LARGE = 2**25

_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def bytes_of_gathering(segments: Segments, width: int, size: int) -> int:
    """What attention segment by segment keeps for the backward pass because of parents, in a layer: their keys and
    values once for each child, and the child's mask.

    Args:
        segments: of the row.
        width: of all key heads together.
        size: bytes of a number.
    """
    pairs = zip(segments.lengths, segments.parents, strict=True)
    children = [(length, segments.lengths[parent]) for length, parent in pairs if parent != NO_PARENT]
    return sum(size * (own + shared) * (2 * width + own) for own, shared in children)


def attends_in_parts(query: torch.Tensor, key: torch.Tensor, segments: Segments, window: int | None) -> bool:
    """Whether two calls take the place of one a completion.

    Args:
        query, key: (1, heads, T, D), (1, key heads, T, D).
        segments: of the row.
        window: tokens that a token sees at most.
    """
    if query.device.type != "cpu" or not segments.has_parents:
        return False
    if window is not None and window < max(segments.key_lengths):
        return False
    width = key.shape[1] * key.shape[3]
    return (
        bytes_of_gathering(segments, width, key.element_size()) > LARGE
        and _families(segments.lengths, segments.parents) is not None
    )


def attend_in_parts(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, scaling: float | None
) -> torch.Tensor:
    """Attention by segments.

    Args:
        query: (1, heads, T, D).
        key, value: (1, key heads, T, D).
        segments: of the row, of which `attends_in_parts` holds.
        scaling: of the scores; 1/sqrt(D) if None.

    Returns:
        (1, heads, T, D).
    """
    return _attend(query, key, value, list(segments.lengths), list(segments.parents), scaling)[0]


def _families(lengths: Sequence[int], parents: Sequence[int]) -> list[tuple[slice, slice]] | None:
    """Of each parent, its place in the row and that of all of its children; None where these do not stand together."""
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    found: list[tuple[slice, slice]] = []
    last = NO_PARENT
    for index, parent in enumerate(parents):
        own = slice(starts[index], starts[index + 1])
        if parent == NO_PARENT:
            last = NO_PARENT
        elif parent == last:
            found[-1] = (found[-1][0], slice(found[-1][1].start, own.stop))
        else:
            shared = slice(starts[parent], starts[parent + 1])
            if any(shared == before for before, _ in found):
                return None  # others stand between
            found.append((shared, own))
            last = parent
    return found


@torch.library.custom_op("posttrain::attend_in_parts", mutates_args=())
def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: list[int],
    parents: list[int],
    scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(1, heads, T, D) of attention, and (1, heads, T) of the logarithms of its sums."""
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    sums = query.new_empty(query.shape[:3], dtype=torch.float32)
    for rows in _rows(lengths):
        output[:, :, rows], sums[:, :, rows] = _forward(
            query[:, :, rows], key[:, :, rows], value[:, :, rows], True, scale
        )
    for shared, rows in _families(lengths, parents) or []:
        part, own_sums = _forward(query[:, :, rows], key[:, :, shared], value[:, :, shared], False, scale)
        both = torch.logaddexp(sums[:, :, rows], own_sums)
        output[:, :, rows] *= (sums[:, :, rows] - both).exp()[..., None].to(output.dtype)
        output[:, :, rows] += part * (own_sums - both).exp()[..., None].to(output.dtype)
        sums[:, :, rows] = both
    return output, sums


@_attend.register_fake
def _(query: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    sums = query.new_empty(query.shape[:3], dtype=torch.float32)
    return torch.empty_like(query, memory_format=torch.contiguous_format), sums


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    query, key, value, ctx.lengths, ctx.parents, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, *output)


def _gradients(ctx: Any, gradient: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
    query, key, value, output, sums = ctx.saved_tensors
    lengths, parents, scale = ctx.lengths, ctx.parents, ctx.scale
    of_query, of_key, of_value = (torch.empty_like(tensor) for tensor in (query, key, value))
    pieces = [(rows, rows, True) for rows in _rows(lengths)]
    pieces += [(rows, shared, False) for shared, rows in _families(lengths, parents) or []]
    for rows, seen, causal in pieces:
        parts = _backward(
            gradient[:, :, rows],
            query[:, :, rows],
            key[:, :, seen],
            value[:, :, seen],
            output[:, :, rows],
            sums[:, :, rows],
            causal,
            scale,
        )
        for total, part, place in zip((of_query, of_key, of_value), parts, (rows, seen, seen), strict=True):
            if causal:  # the first to come: every token is a query and a key of its own segment
                total[:, :, place] = part
            else:
                total[:, :, place] += part
    return of_query, of_key, of_value, None, None, None


_attend.register_autograd(_gradients, setup_context=_keep)


def _rows(lengths: list[int]) -> Iterator[slice]:
    start = 0
    for length in lengths:
        if length:
            yield slice(start, start + length)
        start += length


# The kernel takes as many heads of keys as of queries: those that share a head of keys go into the first dimension.


def _grouped(query: torch.Tensor, key_heads: int) -> torch.Tensor:
    """(1, heads, T, D) → (heads / key heads, key heads, T, D)."""
    return query[0].unflatten(0, (key_heads, -1)).transpose(0, 1)


def _ungrouped(tensor: torch.Tensor) -> torch.Tensor:
    """(heads / key heads, key heads, T, …) → (1, heads, T, …)."""
    return tensor.transpose(0, 1).flatten(0, 1)[None]


def _forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    queries = _grouped(query, key.shape[1])
    keys, values = (tensor.expand(len(queries), -1, -1, -1) for tensor in (key, value))
    output, sums = _FORWARD(queries, keys, values, 0.0, causal, scale=scale)
    return _ungrouped(output), _ungrouped(sums)


def _backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    sums: torch.Tensor,
    causal: bool,
    scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    heads = key.shape[1]
    gradients, queries, outputs = (_grouped(tensor, heads) for tensor in (gradient, query, output))
    keys, values = (tensor.expand(len(queries), -1, -1, -1) for tensor in (key, value))
    of_query, of_key, of_value = _BACKWARD(
        gradients, queries, keys, values, outputs, _grouped(sums, heads), 0.0, causal, scale=scale
    )
    return _ungrouped(of_query), of_key.sum(0, keepdim=True), of_value.sum(0, keepdim=True)
