"""The output head with what stands around its products compiled: two passes over a chunk of logits in place of a dozen.

As in logprobs.py, log-probs and their companions come chunk by chunk, and the logits of all targets are never there at
once. A chunk's statistics read its logits twice (the largest one, then all sums), and its gradient once, in the type
that the head multiplies in, with float32 in the registers alone; nothing of a chunk is kept, the backward pass
multiplies again. On a GPU torch.compile makes Triton kernels of both functions, on a CPU C++.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from posttrain.logprobs import head_gradients, head_statistics

Statistics = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
Gradient = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float, bool], torch.Tensor]


def chunk_statistics(logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """(n, V) logits of any type → (n, 6) float32: the columns of TokenStatistics, and log Σ exp of the logits over the
    temperature. Formulas: logprobs.py."""
    z = logits.float() / temperature
    top, argmax = z.amax(-1, keepdim=True), z.argmax(-1)
    shifted = z - top
    e = shifted.exp()
    total = e.sum(-1)
    log_total = total.log()
    logprobs = shifted.gather(1, targets[:, None])[:, 0] - log_total
    # A token of probability 0 (a logit of -inf) adds nothing.
    entropy = log_total - torch.where(e > 0, e * shifted, 0.0).sum(-1) / total
    log_collision = e.square().sum(-1).log() - 2 * log_total
    is_argmax = (argmax == targets).float()
    return torch.stack([logprobs, entropy, is_argmax, z.mean(-1), log_collision, top[:, 0] + log_total], dim=1)


def chunk_gradient(
    logits: torch.Tensor,
    targets: torch.Tensor,
    log_sum: torch.Tensor,
    entropy: torch.Tensor,
    gradient: torch.Tensor,
    temperature: float,
    with_entropy: bool,
) -> torch.Tensor:
    """Gradient with respect to the logits of a chunk, in their type: d log p_t / dz = onehot(t) - p,
    dH/dz = -p * (log p + H).

    Args:
        logits: (n, V).
        targets: (n,).
        log_sum: (n,) float32, the last column of the statistics.
        entropy: (n,) float32.
        gradient: (n, 2) float32, with respect to log-prob and entropy.
        temperature: divides the logits.
        with_entropy: whether the second column counts.
    """
    log_p = logits.float() / temperature - log_sum[:, None]
    p = log_p.exp()
    is_target = torch.arange(logits.shape[1], device=logits.device)[None] == targets[:, None]
    result = (is_target.float() - p) * gradient[:, :1]
    if with_entropy:
        result = result - torch.where(p > 0, p * (log_p + entropy[:, None]), 0.0) * gradient[:, 1:2]
    return (result / temperature).to(logits.dtype)


class _Head(torch.autograd.Function):
    """As `logprobs._HeadStatistics`, with both functions of a chunk given."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        temperature: float,
        chunk: int,
        with_entropy: bool,
        statistics_of: Statistics,
        gradient_of: Gradient,
    ) -> torch.Tensor:
        parts = []
        for start in range(0, max(1, hidden.shape[0]), chunk):  # once for no rows at all
            rows = slice(start, start + chunk)
            logits = torch.nn.functional.linear(hidden[rows], weight, bias)
            parts.append(statistics_of(logits, targets[rows], temperature))
        table = torch.cat(parts)
        ctx.save_for_backward(hidden, weight, bias, targets, table[:, 1].clone(), table[:, 5].clone())
        ctx.temperature, ctx.chunk, ctx.with_entropy, ctx.gradient_of = temperature, chunk, with_entropy, gradient_of
        return table[:, :5].clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, targets, entropy, log_sum = ctx.saved_tensors

        def of_logits(rows: slice) -> torch.Tensor:
            logits = torch.nn.functional.linear(hidden[rows], weight, bias)
            numbers = (log_sum[rows], entropy[rows], gradient[rows, :2])
            result: torch.Tensor = ctx.gradient_of(logits, targets[rows], *numbers, ctx.temperature, ctx.with_entropy)
            return result

        return *head_gradients(ctx.needs_input_grad[:3], hidden, weight, bias, ctx.chunk, of_logits), *(None,) * 6


def _dynamic(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Compiled for any number of targets, and for this vocabulary, whose size says how memory is best read."""

    def call(*args: Any) -> torch.Tensor:
        for one in args:
            if isinstance(one, torch.Tensor):
                torch._dynamo.maybe_mark_dynamic(one, 0)
        return function(*args)

    return call


def compiled_head_statistics(backend: str, mode: str | None) -> Callable[..., torch.Tensor]:
    """A function to take the place of `logprobs.head_statistics`.

    Args:
        backend, mode: of torch.compile.
    """
    compiled = [_dynamic(torch.compile(one, backend=backend, mode=mode)) for one in (chunk_statistics, chunk_gradient)]

    def apply(
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        temperature: float,
        chunks: tuple[int, int],
        with_entropy: bool,
    ) -> torch.Tensor:
        chunk = max(chunks)
        return _Head.apply(hidden, weight, bias, targets, temperature, chunk, with_entropy, *compiled)

    return functools.partial(head_statistics, apply=apply)
