"""One token of every row, drawn from the logits with one uniform number each and the inverse of the cumulative
distribution; and where the uniform numbers come from.

Logits are changed in transformers' order and with its meanings: repetition penalty, temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

# The cumulative distribution is built in two levels: over blocks of this many tokens, then inside the block drawn.
_BLOCK = 64


@dataclass(frozen=True)
class Sampling:
    """How completions are sampled.

    Args:
        max_new_tokens: at most this many tokens a completion, at least 1.
        eos_token_ids: each of them ends a completion.
        temperature: divides the logits; 0 takes the most probable token, and log-probs are then at temperature 1.
        top_p: smallest set of tokens with this probability; 1 keeps all.
        top_k: this many most probable tokens; 0 keeps all.
        min_p: tokens with at least this share of the largest probability; None keeps all.
        repetition_penalty: logits of the prompt's and the completion's tokens are divided by it where positive and
            multiplied by it where negative (arXiv 1909.05858, section 4.1).
    """

    max_new_tokens: int
    eos_token_ids: tuple[int, ...]
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None
    repetition_penalty: float = 1.0

    @property
    def truncates(self) -> bool:
        """Whether some tokens may be left out."""
        return self.temperature > 0 and (self.top_p < 1 or self.top_k > 0 or bool(self.min_p))

    @property
    def penalises(self) -> bool:
        """Whether what stands in a row already changes its logits."""
        return self.repetition_penalty != 1.0

    @property
    def is_policy(self) -> bool:
        """Whether completions are drawn from softmax(logits / temperature) as it is."""
        return not (self.truncates or self.penalises)


def uniforms(seed: int, sample_ids: Sequence[int], num_tokens: int) -> np.ndarray:
    """Numbers in [0, 1) to draw completions with, from a generator that counts (Philox 4x64, Salmon et al. 2011): those
    of a sample depend on the seed and its id alone, not on what else is drawn beside it, before it or elsewhere.

    Args:
        seed: any integer.
        sample_ids: C integers, no two samples of a run with the same.
        num_tokens: numbers a sample; fewer are the first of more.

    Returns:
        (C, num_tokens) float64, with 53 random bits each.
    """
    numbers = np.empty((len(sample_ids), num_tokens))
    words = 2**64
    for row, sample_id in enumerate(sample_ids):
        key = np.array([seed % words, int(sample_id) % words], dtype=np.uint64)
        bits = np.random.Philox(key=key).random_raw(num_tokens)
        numbers[row] = (bits >> np.uint64(11)) * 2.0**-53
    return numbers


def draw(
    logits: torch.Tensor, numbers: torch.Tensor, sampling: Sampling, seen: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One token a row. A token of probability zero is never drawn.

    Args:
        logits: (R, V).
        numbers: (R,) float64 in [0, 1); not used at temperature 0.
        sampling: how.
        seen: (R, V) bool, the tokens of the prompt and of the completion so far; needed for a repetition penalty.

    Returns:
        tokens (R,) int64; their log-probs (R,) float32 under the distribution that they were drawn from; and (R,)
        under softmax(logits / temperature) alone, the same tensor where that is the same distribution.
    """
    temperature = sampling.temperature or 1.0
    scores = policy_scores = _divided(logits.float(), temperature)
    if sampling.penalises:
        assert seen is not None
        scores = _divided(_penalised(logits.float(), seen, sampling.repetition_penalty), temperature)
    if sampling.truncates:
        scores = truncated(scores, sampling)
    top = scores.amax(-1, keepdim=True)
    weights = (scores - top).exp_()
    block_sums = _block_sums(weights)
    if sampling.temperature == 0:
        tokens = scores.argmax(-1, keepdim=True)
    else:
        tokens = _pick(weights, block_sums, numbers[:, None])
    # Sums over blocks in float64: the total is as exact as the sums of 64 terms that it is made of.
    logprobs = (scores.gather(1, tokens) - top)[:, 0] - block_sums.sum(-1).log().float()
    if sampling.is_policy:
        return tokens[:, 0], logprobs, logprobs
    policy_logprobs = policy_scores.gather(1, tokens)[:, 0] - policy_scores.logsumexp(-1)
    return tokens[:, 0], logprobs, policy_logprobs


def truncated(scores: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Scores (R, V) with -inf for the tokens that top-k, top-p and min-p, in this order, leave out."""
    if sampling.top_k > 0:
        smallest = scores.topk(min(sampling.top_k, scores.shape[1])).values[:, -1:]
        scores = scores.masked_fill(scores < smallest, -torch.inf)
    if sampling.top_p < 1:
        ascending, order = scores.sort(-1)
        out = ascending.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        out[:, -1] = False
        scores = scores.masked_fill(torch.zeros_like(out).scatter_(1, order, out), -torch.inf)
    if sampling.min_p:
        p = scores.softmax(-1)
        scores = scores.masked_fill(p < sampling.min_p * p.amax(-1, keepdim=True), -torch.inf)
    return scores


def _divided(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return logits if temperature == 1.0 else logits / temperature


def _penalised(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def _block_sums(weights: torch.Tensor) -> torch.Tensor:
    """(R, V) → (R, ceil(V / block)) float64."""
    whole = weights.shape[1] // _BLOCK * _BLOCK
    sums = weights[:, :whole].unflatten(1, (-1, _BLOCK)).sum(-1)
    if whole < weights.shape[1]:
        sums = torch.cat([sums, weights[:, whole:].sum(-1, keepdim=True)], dim=1)
    return sums.double()


def _pick(weights: torch.Tensor, block_sums: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """(R, 1) tokens: the first whose cumulative weight exceeds the number's share of the total."""
    block, target = _first_above(block_sums, numbers * block_sums.sum(-1, keepdim=True))
    index = block * _BLOCK + torch.arange(_BLOCK, device=weights.device)
    last = weights.shape[1] - 1
    inside = weights.gather(1, index.clamp(max=last)).double().masked_fill_(index > last, 0.0)
    return (block * _BLOCK + _first_above(inside, target)[0]).clamp_(max=last)


def _first_above(weights: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first column (R, 1) at which the running sum of weights (R, n) exceeds the target (R, 1), and what is left
    of the target there. Rounding may put the target beyond the sum; then it is put just before its end. Where weights
    are not numbers (a diverged model), neither are the log-probs, but the column is still one of the n."""
    running = weights.cumsum(-1)
    total = running[:, -1:]
    target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
    column = torch.searchsorted(running, target, right=True).clamp_(max=running.shape[1] - 1)
    return column, target - (running - weights).gather(1, column)
