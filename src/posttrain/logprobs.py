"""Hidden states → log-prob and entropy of each target token, the (N, V) logits never held whole.

The output head of a causal model is turned into a `TargetHead`, the same `nn.Linear` with one more ability: told the
targets of a forward pass, it returns five numbers a target in place of V logits. The numbers thus come out of the
model's own forward call, so that the hooks of DDP, FSDP and DeepSpeed run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

# Logits held at once: 2**24 fp32 values are 64 MiB. Where all targets fit, the logits are kept for the backward pass
# in place of being computed again.
CHUNK_ELEMENTS = 2**24


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


def _chunk_statistics(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, V) float32 logits → their log-softmax (n, V), in place, and the (n, 5) statistics."""
    is_argmax = logits.argmax(-1) == targets
    mean_logit = logits.mean(-1)
    log_p = logits.sub_(torch.logsumexp(logits, -1, keepdim=True))
    logprobs = log_p.gather(1, targets[:, None])[:, 0]
    p = log_p.exp()
    entropy = -torch.linalg.vecdot(p, log_p)
    log_collision = torch.linalg.vecdot(p, p).log()
    return log_p, torch.stack([logprobs, entropy, is_argmax.float(), mean_logit, log_collision], dim=1)


def _logits_gradient(
    log_p: torch.Tensor, targets: torch.Tensor, entropy: torch.Tensor, gradient: torch.Tensor, with_entropy: bool
) -> torch.Tensor:
    """Gradient with respect to the logits z of a chunk: d log p_t / dz = onehot(t) - p, dH/dz = -p * (log p + H)."""
    p = log_p.exp()
    result = p * -gradient[:, :1]
    if with_entropy:
        result.addcmul_(p * -gradient[:, 1:2], log_p + entropy[:, None])
    result.scatter_add_(1, targets[:, None], gradient[:, :1])
    return result


class _HeadStatistics(torch.autograd.Function):
    """(N, H) hidden states and the (V, H) head → (N, 5) statistics, chunk by chunk; logits recomputed in the backward
    pass unless one chunk holds them all."""

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
    ) -> torch.Tensor:
        keep = chunk >= hidden.shape[0] and any(ctx.needs_input_grad)
        statistics = []
        kept = None
        for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True):
            log_p, result = _chunk_statistics(_head_logits(h, weight, bias, temperature), t)
            statistics.append(result)
            kept = log_p if keep else None
        output = torch.cat(statistics) if len(statistics) != 1 else statistics[0]
        # detach: a tensor saved by hand beside its own output would keep the graph alive in a cycle.
        ctx.save_for_backward(hidden, weight, bias, targets, output[:, 1].detach().clone(), kept)
        ctx.temperature, ctx.chunk, ctx.with_entropy = temperature, chunk, with_entropy
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, targets, entropy, kept = ctx.saved_tensors
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        # Summed over the chunks in float32, whatever the weight is in.
        grad_weight = grad_bias = None
        for start in range(0, hidden.shape[0], ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            log_p = kept
            if log_p is None:
                logits = _head_logits(hidden[rows], weight, bias, ctx.temperature)
                log_p = logits.sub_(torch.logsumexp(logits, -1, keepdim=True))
            grad = _logits_gradient(log_p, targets[rows], entropy[rows], gradient[rows], ctx.with_entropy)
            if ctx.temperature != 1.0:
                grad /= ctx.temperature
            if need_bias:
                grad_bias = _add(grad_bias, grad.sum(0))
            grad = grad.to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = grad @ weight
            if need_weight:
                grad_weight = _add(grad_weight, (grad.T @ hidden[rows]).float())
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
            None,
            None,
        )


def _add(total: torch.Tensor | None, part: torch.Tensor) -> torch.Tensor:
    return part if total is None else total.add_(part)


def _head_logits(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, temperature: float
) -> torch.Tensor:
    logits = torch.nn.functional.linear(hidden, weight, bias).float()
    return logits if temperature == 1.0 else logits.div_(temperature)


def head_statistics(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    temperature: float = 1.0,
    chunk_elements: int = CHUNK_ELEMENTS,
    with_entropy_gradient: bool = False,
) -> torch.Tensor:
    """Statistics of each target under softmax((hidden · weightᵀ + bias) / temperature).

    Args:
        hidden: (N, H) states that predict the targets.
        weight: (V, H) of the output head.
        bias: (V,) or None.
        targets: (N,) int64.
        temperature: divides the logits.
        chunk_elements: logits held at once.
        with_entropy_gradient: whether the entropy is part of a loss; without it the backward pass is cheaper.

    Returns:
        (N, 5) float32: the columns of TokenStatistics; a gradient in the first, and in the second if asked for.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    elif hidden.dtype != weight.dtype:
        hidden = hidden.to(weight.dtype)
    chunk = max(1, chunk_elements // weight.shape[0])
    with torch.autocast(hidden.device.type, enabled=False):
        return _HeadStatistics.apply(hidden, weight, bias, targets, temperature, chunk, with_entropy_gradient)


class TargetHead(nn.Linear):
    """An `nn.Linear` output head that can answer with statistics of targets. Made by `TargetHead.adopt`, by exchanging
    the class of the model's own head: parameters, hooks, tied weights and saving stay as they were."""

    _request: tuple[torch.Tensor, torch.Tensor, float, bool] | None = None

    @classmethod
    def adopt(cls, head: nn.Module) -> TargetHead | None:
        """Turns a plain linear head into a TargetHead in place; None for any other kind (quantised, LoRA, …)."""
        if isinstance(head, TargetHead):
            return head
        if type(head) is not nn.Linear:
            return None
        head.__class__ = cls
        return head  # type: ignore[return-value]

    @contextmanager
    def targeting(
        self, index: torch.Tensor, targets: torch.Tensor, temperature: float = 1.0, with_entropy_gradient: bool = False
    ) -> Iterator[None]:
        """Inside, a forward pass returns (1, N, 5) statistics of `targets` (N,) at the flat positions `index` (N,)."""
        self._request = (index, targets, temperature, with_entropy_gradient)
        try:
            yield
        finally:
            self._request = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self._request is None:
            return super().forward(hidden)
        index, targets, temperature, with_entropy_gradient = self._request
        rows = hidden.reshape(-1, hidden.shape[-1]).index_select(0, index)
        return head_statistics(
            rows, self.weight, self.bias, targets, temperature, with_entropy_gradient=with_entropy_gradient
        )[None]


def statistics_from_logits(
    logits: torch.Tensor, targets: torch.Tensor, temperature: float = 1.0, chunk_elements: int = CHUNK_ELEMENTS
) -> torch.Tensor:
    """The same statistics from logits that a model insists on computing itself (soft-capped, scaled, …).

    Args:
        logits: (N, V).
        targets: (N,) int64.

    Returns:
        (N, 5) float32, differentiable in the first two columns.
    """
    chunk = max(1, chunk_elements // logits.shape[1])
    results = []
    for z, t in zip(logits.split(chunk), targets.split(chunk), strict=True):
        z = z.float() / temperature
        log_p = z.log_softmax(-1)
        with torch.no_grad():
            rest = torch.stack([(z.argmax(-1) == t).float(), z.mean(-1), (2 * log_p).logsumexp(-1)], dim=1)
        own = torch.stack([log_p.gather(1, t[:, None])[:, 0], -torch.linalg.vecdot(log_p.exp(), log_p)], dim=1)
        results.append(torch.cat([own, rest], dim=1))
    return torch.cat(results)
