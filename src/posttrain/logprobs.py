"""Hidden states → log-prob and entropy of each target token, the (N, V) logits never held whole.

The output head of a causal model is turned into a `TargetHead`, the same `nn.Linear` with one more ability: told the
targets of a forward pass, it returns five numbers a target in place of V logits. The numbers thus come out of the
model's own forward call, so that the hooks of DDP, FSDP and DeepSpeed run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from posttrain.logits_chunk import chunk_statistics, write_gradient
from posttrain.recurring_sizes import compiles_for_sizes, num_filling

# Logits worked on at once, in the forward and in the backward pass. Forward, a CPU passes some ten times over what its
# caches should hold (1 MiB in float32); backward, few times, but each time over the whole gradient of the head. A GPU
# wants matrices that fill it (256 MiB).
CHUNK_ELEMENTS = {"cpu": (2**18, 2**21)}
CHUNK_ELEMENTS_ELSEWHERE = (2**26, 2**26)
# But no fewer targets: every chunk reads the whole head. Of 152k tokens, one at a time took six times as long as 32.
LEAST_TARGETS = 32

# Where all probabilities together are no more than this (64 MiB in float32), they are kept for the backward pass in
# place of being computed again.
KEPT_ELEMENTS = 2**24


class TokenStatistics(NamedTuple):
    """What a forward pass says of each target token.

    Args:
        logprobs: (N,) float32, natural log of the target's probability.
        entropy: (N,) float32, of the predicted distribution, in nats.
        is_argmax: (N,) float32, 1 where the target is the most probable token. No gradient.
        mean_logit: (N,) float32, mean over the vocabulary. No gradient.
        log_collision: (N,) float32, log Σ p² over the vocabulary. No gradient.
        router_loss: () load-balancing loss of a mixture of experts, where it was asked for.
    """

    logprobs: torch.Tensor
    entropy: torch.Tensor
    is_argmax: torch.Tensor
    mean_logit: torch.Tensor
    log_collision: torch.Tensor
    router_loss: torch.Tensor | None = None


class _HeadStatistics(torch.autograd.Function):
    """(N, H) hidden states and the (V, H) head → (N, 5) statistics, chunk by chunk; the probabilities of a chunk are
    kept for the backward pass where memory allows, and computed again where not."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        temperature: float,
        chunks: tuple[int, int],
        with_entropy: bool,
    ) -> torch.Tensor:
        keep = any(ctx.needs_input_grad) and hidden.shape[0] * weight.shape[0] <= KEPT_ELEMENTS
        chunk = chunks[0]
        held = hidden.shape[0] if keep else min(chunk, hidden.shape[0])
        p = torch.empty(held, weight.shape[0], dtype=torch.float32, device=hidden.device)
        statistics = []
        for start in range(0, max(1, hidden.shape[0]), chunk):  # once for no rows at all
            rows = slice(start, min(start + chunk, hidden.shape[0]))
            logits = _head_logits(hidden[rows], weight, bias, temperature)
            statistics.append(chunk_statistics(logits, targets[rows], p[rows] if keep else p[: len(logits)]))
        output = torch.cat(statistics)
        # A copy of the entropies: the output itself, saved by hand, would keep the graph alive in a cycle.
        ctx.save_for_backward(hidden, weight, bias, targets, output[:, 1].clone(), p if keep else None)
        ctx.temperature, ctx.chunks, ctx.with_entropy = temperature, chunks, with_entropy
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, targets, entropy, kept = ctx.saved_tensors

        block, chunk = ctx.chunks
        # One piece of memory for all chunks, in the type of the products; in float32 no more than a cache holds.
        memory = weight.new_empty(min(chunk, hidden.shape[0]), weight.shape[0])
        half = weight.dtype != torch.float32
        cached = memory.new_empty(min(block, len(memory)), weight.shape[0], dtype=torch.float32) if half else None

        def of_logits(rows: slice) -> torch.Tensor:
            p = (
                kept[rows]
                if kept is not None
                else _head_logits(hidden[rows], weight, bias, ctx.temperature).softmax(-1)
            )
            result = memory[: len(p)]
            numbers = (p, targets[rows], entropy[rows], gradient[rows])
            parts = (one.split(block) for one in (*numbers, result))
            for some_p, some_targets, some_entropy, some_gradient, out in zip(*parts, strict=True):
                into = out if cached is None else cached[: len(out)]
                write_gradient(
                    some_p, some_targets, some_entropy, some_gradient, ctx.temperature, ctx.with_entropy, into
                )
                if cached is not None:
                    out.copy_(into)
            return result

        return *head_gradients(ctx.needs_input_grad[:3], hidden, weight, bias, chunk, of_logits), *(None,) * 4


def head_gradients(
    needed: tuple[bool, ...],
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    chunk: int,
    of_logits: Callable[[slice], torch.Tensor],
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Gradients of hidden states, head and bias, chunk by chunk.

    Args:
        needed: which of the three.
        hidden: (N, H).
        weight: (V, H).
        bias: (V,) or None.
        chunk: targets at a time.
        of_logits: the gradient (n, V) of the logits of some rows.
    """
    grad_hidden = torch.empty_like(hidden) if needed[0] else None
    # Summed over the chunks in float32, whatever the weight is in.
    grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needed[1] else None
    grad_bias = torch.zeros_like(bias, dtype=torch.float32) if needed[2] and bias is not None else None
    for start in range(0, hidden.shape[0], chunk):
        rows = slice(start, start + chunk)
        grad = of_logits(rows)
        if grad_bias is not None:
            grad_bias += grad.sum(0, dtype=torch.float32)
        grad = grad.to(weight.dtype)
        if grad_hidden is not None:
            torch.mm(grad, weight, out=grad_hidden[rows])
        if grad_weight is not None:
            if grad.dtype == torch.float32:
                grad_weight.addmm_(grad.T, hidden[rows])
            else:
                grad_weight += grad.T @ hidden[rows]
    return (
        grad_hidden,
        None if grad_weight is None else grad_weight.to(weight.dtype),
        None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
    )


def _head_logits(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, temperature: float
) -> torch.Tensor:
    logits = torch.nn.functional.linear(hidden, weight, bias).float()
    return logits if temperature == 1.0 else logits.div_(temperature)


def targets_at_once(device: str, vocabulary: int) -> tuple[int, int]:
    """Targets whose logits are worked on at a time, in the forward and in the backward pass.

    Args:
        device: its type.
        vocabulary: V.
    """
    forward, backward = CHUNK_ELEMENTS.get(device, CHUNK_ELEMENTS_ELSEWHERE)
    return max(LEAST_TARGETS, forward // vocabulary), max(LEAST_TARGETS, backward // vocabulary)


def head_statistics(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    temperature: float = 1.0,
    with_entropy_gradient: bool = False,
    apply: Callable[..., torch.Tensor] = _HeadStatistics.apply,
) -> torch.Tensor:
    """Statistics of each target under softmax((hidden · weightᵀ + bias) / temperature).

    Args:
        hidden: (N, H) states that predict the targets.
        weight: (V, H) of the output head.
        bias: (V,) or None.
        targets: (N,) int64.
        temperature: divides the logits.
        with_entropy_gradient: whether the entropy is part of a loss; without it the backward pass is cheaper.
        apply: what goes through the chunks.

    Returns:
        (N, 5) float32: the columns of TokenStatistics; a gradient in the first, and in the second if asked for.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    elif hidden.dtype != weight.dtype:
        hidden = hidden.to(weight.dtype)
    chunks = targets_at_once(hidden.device.type, weight.shape[0])
    with torch.autocast(hidden.device.type, enabled=False):
        return apply(hidden, weight, bias, targets, temperature, chunks, with_entropy_gradient)


class _Asked:
    """What a head is asked for. Shared with copies of the head: peft trains one in its place, on request."""

    request: tuple[torch.Tensor, torch.Tensor, float, bool] | None = None
    statistics: Callable[..., torch.Tensor] = staticmethod(head_statistics)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Asked:
        return self


class TargetHead(nn.Linear):
    """An `nn.Linear` output head that can answer with statistics of targets. Made by `TargetHead.adopt`, by exchanging
    the class of the model's own head: parameters, hooks, tied weights and saving stay as they were."""

    _asked: _Asked

    @classmethod
    def adopt(cls, head: nn.Module) -> TargetHead | None:
        """Turns a plain linear head into a TargetHead in place; None for any other kind (quantised, LoRA, …)."""
        if isinstance(head, TargetHead):
            return head
        if type(head) is not nn.Linear:
            return None
        head.__class__ = cls
        head._asked = _Asked()  # type: ignore[assignment]
        return head  # type: ignore[return-value]

    @contextmanager
    def targeting(
        self, index: torch.Tensor, targets: torch.Tensor, temperature: float = 1.0, with_entropy_gradient: bool = False
    ) -> Iterator[None]:
        """Inside, a forward pass returns (1, N, 5) statistics of `targets` (N,) at the flat positions `index` (N,)."""
        self._asked.request = (index, targets, temperature, with_entropy_gradient)
        try:
            yield
        finally:
            self._asked.request = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self._asked.request is None:
            return super().forward(hidden)
        index, targets, temperature, with_entropy_gradient = self._asked.request
        count = len(index)
        if count and compiles_for_sizes(hidden.device, self.weight.dtype):
            again = torch.zeros(num_filling(count), dtype=torch.int64)  # the first target, and nobody looks
            index, targets = torch.cat([index, index[again]]), torch.cat([targets, targets[again]])
        rows = hidden.reshape(-1, hidden.shape[-1]).index_select(0, index)
        statistics = self._asked.statistics(
            rows, self.weight, self.bias, targets, temperature, with_entropy_gradient=with_entropy_gradient
        )
        return statistics[None, :count]


def statistics_from_logits(logits: torch.Tensor, targets: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """The same statistics from logits that a model insists on computing itself (soft-capped, scaled, …).

    Args:
        logits: (N, V).
        targets: (N,) int64.

    Returns:
        (N, 5) float32, differentiable in the first two columns.
    """
    chunk = max(1, CHUNK_ELEMENTS.get(logits.device.type, CHUNK_ELEMENTS_ELSEWHERE)[0] // logits.shape[1])
    results = []
    for z, t in zip(logits.split(chunk), targets.split(chunk), strict=True):
        z = z.float() / temperature
        log_p = z.log_softmax(-1)
        with torch.no_grad():
            rest = torch.stack([(z.argmax(-1) == t).float(), z.mean(-1), (2 * log_p).logsumexp(-1)], dim=1)
        own = torch.stack([log_p.gather(1, t[:, None])[:, 0], -torch.linalg.vecdot(log_p.exp(), log_p)], dim=1)
        results.append(torch.cat([own, rest], dim=1))
    return torch.cat(results)
