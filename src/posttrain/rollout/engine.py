"""Samples completions from the policy as it is, with the log-prob of each token.

All prompts go through the model in one packed pass, once for however many completions each has; from then on the model
takes one token of every completion at a time, and rows that have ended leave. What runs is the model's own outermost
forward pass, or on a CPU, for models of the usual kind, the step that written_out.py makes of their weights. Memory for
keys and values is allocated at the start: see `posttrain.decoding` for how much.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from posttrain import attention
from posttrain.batch import NO_PARENT, Segments, pack
from posttrain.compiled import as_written
from posttrain.decoding import DecodingState
from posttrain.recurring_sizes import compiles_for_sizes, num_filling
from posttrain.rollout.captured import Captured
from posttrain.rollout.fallback import generate_padded
from posttrain.rollout.record import Completions, Drawn, Record
from posttrain.rollout.sampling import Sampling, uniforms
from posttrain.rollout.written_out import written_out
from posttrain.scoring import Scorer, agrees

__all__ = ["Completions", "Engine", "Sampling", "uniforms"]

logger = logging.getLogger(__name__)

# Rows that have ended leave when at most this share is left: each time, what is held of the others is moved.
_LEAVE_AT = 0.65

# Devices that can run a step as a captured graph.
_CAPTURING = {"cuda"}


class Engine:
    """Samples from one model. Made once, after the scorer and before the model is wrapped or adapted.

    Args:
        model: a causal language model of transformers.
        scorer: of the same model.
    """

    def __init__(self, model: PreTrainedModel, scorer: Scorer) -> None:
        self.packed = scorer.packed and _try_packed(model, scorer)
        can_capture = self.packed and model.device.type in _CAPTURING
        # A step as a graph. A model that will be spread over GPUs is here still on the CPU: tried when it is sampled.
        self.captures = self.packed and (not can_capture or _try_packed(model, scorer, captures=True))
        self._has_captured = False  # with the precision of training, in which it is not tried here
        may_write_out = self.packed and model.device.type == "cpu"
        self.writes_out = may_write_out and _try_packed(model, scorer, writes_out=True)
        if can_capture and not self.captures:
            logger.warning("Its steps of sampling are launched kernel by kernel (same results, more time).")
        if not self.packed:
            logger.warning(
                "%s cannot decode by segments: completions come from transformers' generate (same results, more time).",
                type(model).__name__,
            )

    @torch.no_grad()
    def generate(
        self,
        model: torch.nn.Module,
        prompts: Sequence[np.ndarray],
        num_completions: int,
        sampling: Sampling,
        uniforms: np.ndarray,
        autocast: contextlib.AbstractContextManager[Any] | None = None,
    ) -> Completions:
        """Completions of every prompt. The same uniforms give the same completions, up to the rounding of the model,
        whatever else is in the batch.

        Args:
            model: the model of this engine, or a wrapper around it (DDP, adapters), in any mode; put into evaluation
                mode for the time. Sharded weights must have been gathered: ranks need different numbers of passes.
            prompts: P arrays of token ids, none of them empty.
            num_completions: G, of each prompt.
            sampling: how.
            uniforms: (P * G, max_new_tokens) in [0, 1), from the function of that name.
            autocast: entered for the time; that of training, where it is in mixed precision. Weights are cast once.
        """
        assert all(len(prompt) for prompt in prompts), "a prompt without tokens"
        assert uniforms.shape == (len(prompts) * num_completions, sampling.max_new_tokens)
        model = _steppable(model)
        device = next(model.parameters()).device
        record = Record(prompts, num_completions, sampling, uniforms, device)
        with autocast or contextlib.nullcontext(), _evaluating(model), as_written(model), _casts_kept(model):
            if self.packed:
                captures = self.captures and device.type in _CAPTURING
                writes_out = self.writes_out and not captures and device.type == "cpu"
                is_first, self._has_captured = not self._has_captured, self._has_captured or captures
                could = _generate_packed(
                    model, prompts, num_completions, record, device, captures, writes_out, is_first
                )
                self.captures = self.captures and could  # what was refused once is not tried again
            else:
                generate_padded(_bare(model), prompts, num_completions, record)
        return record.completions()


def _generate_packed(
    model: torch.nn.Module,
    prompts: Sequence[np.ndarray],
    num_completions: int,
    record: Record,
    device: torch.device,
    captures: bool = False,
    writes_out: bool = False,
    is_first: bool = False,
) -> bool:
    """Draws completions into the record; returns whether its steps could be captured, where that was wanted."""
    lengths = [len(prompt) for prompt in prompts]
    state = DecodingState(lengths, num_completions, record.sampling.max_new_tokens, device, static=captures)
    no_mask = attention.no_mask(device)
    with attention.masks_from_segments():
        logits = _prefill(model, prompts, lengths, state, device)
        tokens = record.add(record.drawn(logits.repeat_interleave(num_completions, 0), record.numbers))
        positions = torch.tensor(lengths, device=device).repeat_interleave(num_completions)
        longest = max(lengths) + record.sampling.max_new_tokens
        written = written_out(_bare(model), state, longest) if writes_out else None
        if written is not None:
            torch.clear_autocast_cache()  # it has weights of its own

        def step(tokens: torch.Tensor, positions: torch.Tensor, numbers: torch.Tensor) -> Drawn:
            state.begin_step()
            if written is not None:
                return record.drawn(written(tokens, positions), numbers)
            output = model(
                input_ids=tokens[:, None],
                position_ids=positions[:, None],
                attention_mask=no_mask,
                decoding=state,
                use_cache=False,
            )
            return record.drawn(output.logits[:, -1], numbers)

        captured = Captured(step, lambda: state.columns, is_first)
        run: Callable[..., Any] = captured if captures else step
        while len(going := record.unfinished()):
            if len(going) <= _LEAVE_AT * state.num_rows:
                record.keep(going)
                state.keep(going)
                index = torch.from_numpy(going).to(device)
                tokens, positions = tokens[index], positions[index]
            tokens = record.add(run(tokens, positions + state.step, record.numbers))
            state.end_step()
    return not captured.refused


def _prefill(
    model: torch.nn.Module,
    prompts: Sequence[np.ndarray],
    lengths: list[int],
    state: DecodingState,
    device: torch.device,
) -> torch.Tensor:
    """(P, V) logits of the first new token of each prompt."""
    ends = np.cumsum(lengths)
    if compiles_for_sizes(device, next(model.parameters()).dtype) and (missing := num_filling(int(ends[-1]))):
        # A prompt behind the others that is not looked at.
        prompts, lengths = [*prompts, np.zeros(missing)], [*lengths, missing]
    ids = torch.from_numpy(np.concatenate(prompts).astype(np.int64)).to(device)
    positions = torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])).to(device)
    output = model(
        input_ids=ids[None],
        position_ids=positions[None],
        segments=Segments(tuple(lengths), (NO_PARENT,) * len(lengths)),
        decoding=state,
        logits_to_keep=torch.from_numpy(ends - 1).to(device),
        use_cache=False,
    )
    return output.logits[0]


@contextlib.contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def _casts_kept(model: torch.nn.Module) -> Iterator[None]:
    """Autocast keeps what it has cast of weights that want gradients, and casts others anew in each step: so all do."""
    frozen = [one for one in model.parameters() if one.dtype == torch.float32 and not one.requires_grad]
    try:
        for one in frozen:
            one.requires_grad_(True)
        yield
    finally:
        for one in frozen:
            one.requires_grad_(False)


def _steppable(model: Any) -> torch.nn.Module:
    """Without what would wait for other ranks, or be compiled again, at each token."""
    while isinstance(model, DistributedDataParallel) or hasattr(model, "_orig_mod"):
        model = model.module if isinstance(model, DistributedDataParallel) else model._orig_mod
    return model


def _bare(model: Any) -> PreTrainedModel:
    """The model inside adapters and other wrappers, the adapters' layers in it."""
    while not isinstance(model, PreTrainedModel):
        model = model.get_base_model() if hasattr(model, "get_base_model") else model.module
    return model


def _try_packed(model: PreTrainedModel, scorer: Scorer, captures: bool = False, writes_out: bool = False) -> bool:
    """Samples a few tokens, in captured steps, in written-out ones, or not, and holds their log-probs against those of
    the scorer."""
    vocab_size = model.config.get_text_config().vocab_size
    prompts = [np.arange(3, 3 + n) * 7919 % vocab_size for n in (5, 3)]
    record = Record(prompts, 2, Sampling(4, ()), uniforms(0, range(4), 4), model.device)
    # A model that takes no such keywords, or whose attention is not called with them, says so in its own way.
    with (
        contextlib.suppress(attention.UnsupportedAttentionError, AttributeError, TypeError, ValueError, RuntimeError),
        torch.no_grad(),
        _evaluating(model),
    ):
        if not _generate_packed(model, prompts, 2, record, model.device, captures, writes_out, is_first=captures):
            return False
        completions = record.completions()
        ids = [ids for i, prompt in enumerate(prompts) for ids in (prompt, *completions.token_ids[2 * i : 2 * i + 2])]
        masks = [np.full(len(row), i % 3 > 0, dtype=np.int8) for i, row in enumerate(ids)]
        batch = pack(ids, masks, [NO_PARENT, 0, 0, NO_PARENT, 3, 3], num_groups=2).to(model.device)
        drawn = torch.from_numpy(np.concatenate(completions.logprobs)).to(model.device)
        return agrees(drawn, scorer(model, batch).logprobs, model.dtype)
    return False
