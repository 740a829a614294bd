"""From a model and a packed batch to the statistics of its targets, by whichever way the model can go.

Packed: the row goes in whole and the model attends by segments. Padded: a model that cannot do that (recurrent layers,
soft-capped scores, attention sinks, an attention of its own) gets a rectangle. Either way N target positions come out,
and no loss, trainer or script knows which way was taken. The way is not read off a list of architectures: it is tried
on a few tokens when the model is loaded, against the model's own forward pass.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from posttrain import attention
from posttrain.batch import NO_PARENT, PackedBatch, pack
from posttrain.logprobs import TargetHead, TokenStatistics, statistics_from_logits
from posttrain.norms import exchange_norms
from posttrain.recurring_sizes import compiles_for_sizes, filled

logger = logging.getLogger(__name__)

# How far two ways of computing the same log-probs may differ on the few tokens of the trial, relative to 1 + |log p|.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8, torch.bfloat16: 3e-2, torch.float16: 1e-2}


class Scorer:
    """Scores targets under one model. Made once, after loading and before the model is wrapped or adapted.

    Args:
        model: a causal language model of transformers.
        packed: False leaves the model's own attention in place and pads, as for `--attn_implementation`.
        adopt_head: False leaves the output head as it is, for an adapter on it, and reads whole logits.
    """

    def __init__(self, model: PreTrainedModel, packed: bool = True, adopt_head: bool = True):
        self.packed = False
        self.head: TargetHead | None = None
        self._config = model.config
        self._dtype = model.dtype
        trial = trial_batch(model.config.get_text_config().vocab_size).to(model.device)
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                expected = self(model, trial).logprobs
                if packed and may_attend_by_segments(model):
                    self.packed = try_packed(self, model, lambda: self(model, trial).logprobs, expected)
                self.head = _try_head(self, model, trial, expected) if adopt_head else None
            exchange_norms(model)
        finally:
            model.train(was_training)
        if packed and not self.packed:
            logger.warning(
                "%s cannot attend by segments: its batches are padded (same results, more time).", type(model).__name__
            )

    def __call__(
        self,
        model: torch.nn.Module,
        batch: PackedBatch,
        temperature: float = 1.0,
        with_entropy_gradient: bool = False,
    ) -> TokenStatistics:
        """One forward pass.

        Args:
            model: the model of this scorer, or a wrapper around it (DDP, FSDP, DeepSpeed, adapters).
            batch: on the model's device.
            temperature: divides the logits.
            with_entropy_gradient: whether the entropy is part of a loss.
        """
        if self.packed:
            # The router loss of a mixture of experts reads the mask, and counts every token of the row.
            is_routed = getattr(self._config, "output_router_logits", False)
            inputs = packed_inputs(batch, self._dtype, not is_routed)
            index = batch.target_positions
        else:
            rows = batch.padded()
            inputs = {"input_ids": rows.input_ids, "attention_mask": rows.attention_mask}
            index = rows.target_index
        with contextlib.ExitStack() as stack:
            if self.packed:
                stack.enter_context(attention.masks_from_segments())
            if self.head is not None:
                request = self.head.targeting(index, batch.target_ids, temperature, with_entropy_gradient)
                stack.enter_context(request)
            output = model(**inputs, use_cache=False)
        if self.head is not None:
            table = output.logits[0]
        else:
            logits = output.logits.reshape(-1, output.logits.shape[-1])[index]
            table = statistics_from_logits(logits, batch.target_ids, temperature)
        logprobs, entropy, is_argmax, mean_logit, log_collision = table.unbind(1)
        router_loss = getattr(output, "aux_loss", None)
        return TokenStatistics(logprobs, entropy, is_argmax, mean_logit, log_collision, router_loss)


def packed_inputs(batch: PackedBatch, dtype: torch.dtype, is_plain: bool = True) -> dict[str, Any]:
    """What a model is called with that attends by segments.

    Args:
        batch: on the model's device.
        dtype: of the model's weights.
        is_plain: whether nothing but attention looks at the mask, and nothing at all at tokens that do not count.
    """
    ids, positions, segments = batch.input_ids, batch.position_ids, batch.segments
    if is_plain and compiles_for_sizes(ids.device, dtype):
        ids, positions, segments = filled(batch)
    inputs = {"input_ids": ids[None], "position_ids": positions[None], "segments": segments}
    return inputs | ({"attention_mask": attention.no_mask(ids.device)} if is_plain else {})


def trial_batch(vocab_size: int) -> PackedBatch:
    """A document, and a prompt with two completions, of a few different tokens each."""
    lengths, parents = (7, 5, 4, 6), (NO_PARENT, NO_PARENT, 1, 1)
    ids = [np.arange(3, 3 + n) * 7919 * (i + 1) % vocab_size for i, n in enumerate(lengths)]
    masks = [np.ones(n, dtype=np.int8) for n in lengths]
    masks[0][0], masks[1][:] = 0, 0
    return pack(ids, masks, parents, num_groups=2)


def may_attend_by_segments(model: PreTrainedModel) -> bool:
    """What a trial on a few tokens might miss: state carried along the row, and attention in chunks."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        getattr(type(model), "_supports_attention_backend", False)
        and not getattr(type(model), "_is_stateful", False)
        and kinds <= {"full_attention", "sliding_attention"}
    )


def agrees(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether two ways of computing the same log-probs, by a model of this type, came to the same."""
    error = ((actual - expected).abs() / (1 + expected.abs())).max().item()
    return error <= _TOLERANCE.get(dtype, 3e-2)


def try_packed(scorer: Any, model: PreTrainedModel, score: Callable[[], torch.Tensor], expected: torch.Tensor) -> bool:
    """Whether a model can attend by segments; leaves it with the attention for that, or as it was.

    Args:
        scorer: its `packed` is set for the trial, and left so.
        model: the scorer's.
        score: runs the trial with the scorer as it stands.
        expected: what must come out.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation(attention.NAME)
    scorer.packed = True
    # A model that takes no such keywords, or whose attention is not called with them, says so in its own way.
    with contextlib.suppress(attention.UnsupportedAttentionError, TypeError, ValueError, RuntimeError):
        if agrees(score(), expected, model.dtype):
            return True
    scorer.packed = False
    model.set_attn_implementation(before)
    return False


def _try_head(scorer: Scorer, model: PreTrainedModel, trial: PackedBatch, expected: torch.Tensor) -> TargetHead | None:
    embeddings = model.get_output_embeddings()
    head = None if embeddings is None else TargetHead.adopt(embeddings)
    if head is None:
        return None
    scorer.head = head
    # Logits that are scaled or soft-capped after the head would change the statistics, or their shape.
    if agrees(scorer(model, trial).logprobs, expected, model.dtype):
        return head
    scorer.head = None
    head.__class__ = torch.nn.Linear  # type: ignore[assignment]
    return None
