"""Whether a vLLM computes the model that is trained: what it says of tokens that it has drawn, beside what the model
says of them."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from torch import nn

from posttrain.batch import NO_PARENT, PackedBatch, pack
from posttrain.rollout.vllm_engine import Drawn

logger = logging.getLogger(__name__)

TRIED = 16  # tokens after each of two prompts
# Mean differences of log-probs, in nats, that two ways to compute the same model may have: bfloat16 is off by some
# hundredths, another model by several. Of weights that were altered: so many times what bfloat16 is off by.
_SAME_MODEL, _SAME_WEIGHTS, _ROUNDING = 0.5, 3.0, 1e-3


@torch.no_grad()
def alter(model: nn.Module) -> None:
    """Gives a model other weights of the same kind: rows are mixed with those before them, and vectors, which may be
    ones throughout, are a little larger. Much more than that would make a deep model one of which rounding changes
    everything.

    Args:
        model: whose weights they are.
    """
    for parameter in model.parameters():
        mixed = 0.7 * parameter + 0.3 * parameter.roll(1, 0)
        parameter.copy_(mixed if parameter.ndim > 1 else 1.1 * mixed)


def prompts_of(vocabulary: int) -> list[np.ndarray]:
    """Two prompts to try a model with so many tokens on."""
    return [np.arange(3, 3 + length) * 7919 % vocabulary for length in (5, 9)]


def is_strange(drawn: list[Drawn], vocabulary: int) -> str | None:
    """Tokens that a model does not know."""
    largest = max(int(one.token_ids.max()) for one in drawn)
    return f"it has drawn token {largest:,} of {vocabulary:,}" if largest >= vocabulary else None


def batch_of(drawn: list[Drawn], vocabulary: int) -> PackedBatch:
    """Completions of `prompts_of`, to be scored; on the CPU."""
    ids = [ids for prompt, one in zip(prompts_of(vocabulary), drawn, strict=True) for ids in (prompt, one.token_ids)]
    masks = [np.full(len(row), i % 2, dtype=np.int8) for i, row in enumerate(ids)]
    return pack(ids, masks, [NO_PARENT, 0, NO_PARENT, 2], num_groups=2)


def keeps_weights(drawn: list[Drawn], altered: Any, vocabulary: int, temperature: float) -> str | None:
    """What speaks against a vLLM having taken all of the altered weights that it was sent; None: nothing.

    Args:
        drawn: its completions of `prompts_of`.
        altered: a model with these weights, in float32; it is rounded.
        vocabulary: tokens that the model knows.
        temperature: of the completions.
    """
    batch = batch_of(drawn, vocabulary)
    now = _scored_plainly(altered, batch, temperature)
    rounding = float(np.abs(_scored_plainly(altered.bfloat16(), batch, temperature) - now).mean())
    mean, _ = _differences(drawn, now)
    if mean < max(_SAME_WEIGHTS * rounding, _ROUNDING):
        return None
    return f"log-probs are {mean:.2g} nats off on average, where bfloat16 would be {rounding:.2g} off"


def is_another(drawn: list[Drawn], scored: np.ndarray) -> str | None:
    """What speaks against a vLLM computing what the trainer computes; None: nothing.

    Args:
        drawn: its completions of `prompts_of`.
        scored: (N,) log-probs of their tokens, as the trainer has them.
    """
    mean, most = _differences(drawn, scored)
    if not mean < _SAME_MODEL:
        return f"log-probs of the same tokens differ by {mean:.2g} nats on average"
    logger.info("vLLM and trainer: log-probs differ by %.1e on average, %.1e at most.", mean, most)
    return None


def _differences(drawn: list[Drawn], scored: np.ndarray) -> tuple[float, float]:
    differences = np.abs(scored - np.concatenate([one.logprobs for one in drawn]))
    return float(differences.mean()), float(differences.max())


@torch.no_grad()
def _scored_plainly(model: Any, batch: PackedBatch, temperature: float) -> np.ndarray:
    """(N,) log-probs of a batch's targets by a model's own forward pass on padded rows."""
    rows = batch.padded()
    logits = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False).logits.float()
    logprobs = (logits.flatten(0, 1)[rows.target_index] / temperature).log_softmax(-1)
    return logprobs.gather(1, batch.target_ids[:, None])[:, 0].numpy()
