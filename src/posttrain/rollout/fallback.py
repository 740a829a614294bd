"""Sampling through transformers' `generate`, for models that cannot attend by segments: a cache of its own kind,
prompts padded on the left, finished rows carried along. The draws are the same as in the packed way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from posttrain.rollout.record import Record


class _Drawn(LogitsProcessor):
    """Draws every token itself and leaves `generate`, which takes the largest, no other choice."""

    def __init__(self, record: Record) -> None:
        self.record = record

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        tokens = self.record.add(self.record.drawn(scores, self.record.numbers))
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)


def generate_padded(
    model: PreTrainedModel,
    prompts: Sequence[np.ndarray],
    num_completions: int,
    record: Record,
) -> None:
    """Runs the model from token to token until all rows have ended.

    Args:
        model: unwrapped; an adapted one too.
        prompts: P arrays of token ids.
        num_completions: rows of each prompt.
        record: draws the tokens and keeps them.
    """
    ends = list(record.sampling.eos_token_ids)
    width = max(len(prompt) for prompt in prompts)
    ids = np.zeros((len(prompts), width), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    own = model.generation_config
    # Whatever the model's author set there (penalties, lengths, suppressed tokens) would be filled in.
    model.generation_config = GenerationConfig()
    try:
        model.generate(
            torch.from_numpy(ids).to(model.device).repeat_interleave(num_completions, 0),
            attention_mask=torch.from_numpy(mask).to(model.device).repeat_interleave(num_completions, 0),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=record.sampling.max_new_tokens,
                eos_token_id=ends or None,
                pad_token_id=ends[0] if ends else 0,
            ),
            logits_processor=LogitsProcessorList([_Drawn(record)]),
            synced_gpus=False,  # the model is whole here, and each process has its own number of tokens
        )
    finally:
        model.generation_config = own
