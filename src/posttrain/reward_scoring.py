"""From a sequence classifier and a packed batch to a score at the end of each of its sequences.

As in `scoring.py`: the row goes in whole where the model can attend by segments, which is tried at loading, and as a
padded rectangle where it cannot. transformers' classifiers have a last layer, `score`, that makes a number of every
position, and pick one position a row, by looking for padding. Here the last layer does the picking: asked for the ends
of C sequences, it answers at every position with all C scores, so that whatever position is picked afterwards, they
come out of the model's own forward call, and the hooks of DDP, FSDP and DeepSpeed run.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from posttrain import attention
from posttrain.batch import PackedBatch
from posttrain.norms import exchange_norms
from posttrain.scoring import agrees, may_attend_by_segments, packed_inputs, trial_batch, try_packed

logger = logging.getLogger(__name__)

# Not an attribute of the head: peft trains and saves a copy of it.
_ends: ContextVar[torch.Tensor | None] = ContextVar("ends", default=None)


class ScoreHead(nn.Linear):
    """A linear layer with one output that can answer with the scores at given positions. Made of the model's own layer
    by exchanging its class: parameters, hooks and saving stay as they were."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, L, H) → (B, L, 1); or, for C ends, (B, L, C): at each position the scores at all of them."""
        ends = _ends.get()
        if ends is None:
            return super().forward(hidden)
        rows = hidden.reshape(-1, hidden.shape[-1]).index_select(0, ends)
        # In float32: differences between scores are what counts.
        with torch.autocast(hidden.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            scores = nn.functional.linear(rows.float(), self.weight.float(), bias)[:, 0]
        return scores.expand(*hidden.shape[:-1], -1)


class RewardScorer:
    """Scores sequences under one model. Made once, after loading and before the model is wrapped or adapted.

    Args:
        model: a sequence classifier of transformers with one label.
        packed: False leaves the model's own attention in place and pads, as for `--attn_implementation`.
    """

    def __init__(self, model: PreTrainedModel, packed: bool = True):
        self.packed = self.has_head = False
        self._dtype = model.dtype
        # Some classifiers (encoders) know no cache.
        takes_cache = "use_cache" in inspect.signature(model.forward).parameters
        self._options: dict[str, Any] = {"use_cache": False} if takes_cache else {}
        text_config = model.config.get_text_config()
        if text_config.pad_token_id is None:
            text_config.pad_token_id = 0  # rows of different lengths are refused without one
        self.pad_token_id = int(text_config.pad_token_id)
        trial = _without_token(trial_batch(text_config.vocab_size), self.pad_token_id).to(model.device)
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                expected = self._one_at_a_time(model, trial)
                self.has_head = self._try_head(model, trial, expected)
                if self.has_head and packed and may_attend_by_segments(model):
                    self.packed = try_packed(self, model, lambda: self(model, trial), expected)
            exchange_norms(model)
        finally:
            model.train(was_training)
        if packed and not self.packed:
            logger.warning(
                "%s cannot attend by segments: its batches are padded (same results, more time).", type(model).__name__
            )

    def __call__(self, model: nn.Module, batch: PackedBatch) -> torch.Tensor:
        """One forward pass.

        Args:
            model: the model of this scorer, or a wrapper around it (DDP, FSDP, DeepSpeed, adapters).
            batch: on the model's device.

        Returns:
            (C,) float32, the score of each sequence.
        """
        if self.packed:
            inputs = packed_inputs(batch, self._dtype)
            ends = batch.end_positions
        else:
            rows = batch.padded()
            mask = rows.attention_mask
            inputs = {"input_ids": rows.input_ids.masked_fill(mask == 0, self.pad_token_id), "attention_mask": mask}
            ends = torch.arange(len(mask), device=mask.device) * mask.shape[1] + mask.sum(1) - 1
        with contextlib.ExitStack() as stack:
            if self.packed:
                stack.enter_context(attention.masks_from_segments())
            if self.has_head:
                stack.callback(_ends.reset, _ends.set(ends))
            logits: torch.Tensor = model(**inputs, **self._options).logits
        return (logits[0] if self.has_head else logits[:, 0]).float()

    def _one_at_a_time(self, model: PreTrainedModel, batch: PackedBatch) -> torch.Tensor:
        rows = batch.padded()
        lengths = rows.attention_mask.sum(1).tolist()
        sequences = [ids[None, :length] for ids, length in zip(rows.input_ids, lengths, strict=True)]
        return torch.cat([model(input_ids=ids, **self._options).logits[:, 0] for ids in sequences]).float()

    def _try_head(self, model: PreTrainedModel, trial: PackedBatch, expected: torch.Tensor) -> bool:
        head = getattr(model, "score", None)
        if isinstance(head, ScoreHead):
            return True
        if type(head) is not nn.Linear:
            return False
        head.__class__ = ScoreHead
        self.has_head = True
        if agrees(self(model, trial), expected, model.dtype):
            return True
        self.has_head = False
        head.__class__ = nn.Linear
        return False


def _without_token(batch: PackedBatch, token: int) -> PackedBatch:
    """A batch that holds another token in the place of one."""
    batch.input_ids[batch.input_ids == token] = token + 1 if token == 0 else token - 1
    return batch
