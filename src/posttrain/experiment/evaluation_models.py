"""What a model does on held-out rows: answers it writes, and log-probs of answers that it is shown.

Both go the ways of training: the rollout engine, and packed batches in which completions share their prompt. Tests
compare them with transformers' own `generate` and `forward`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from posttrain.batch import NO_PARENT, PackedBatch, pack
from posttrain.config import CommonConfig
from posttrain.data.chat import render
from posttrain.data.formats import Message
from posttrain.data.prefix import common_prefix_length
from posttrain.data.problems import RowError
from posttrain.errors import UserError
from posttrain.models import load_causal_model
from posttrain.rollout.engine import Engine, Sampling, uniforms
from posttrain.scoring import Scorer


@dataclass(frozen=True)
class Policy:
    """A model that is evaluated, and what its tokens mean.

    Args:
        model: a causal language model, in evaluation mode.
        scorer: of the model.
        tokenizer: of the model.
        end_ids: the tokens that end its turn.
    """

    model: PreTrainedModel
    scorer: Scorer
    tokenizer: PreTrainedTokenizerBase
    end_ids: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """What a model wrote after a prompt.

    Args:
        text: without special tokens.
        token_ids: int64, the one that ends the turn included.
        logprobs: float32, of each token under the model at the temperature of sampling.
        ended: whether the model ended its turn, rather than running into the limit.
    """

    text: str
    token_ids: np.ndarray
    logprobs: np.ndarray
    ended: bool


@dataclass(frozen=True)
class Generation:
    """How answers are written.

    Args:
        max_new_tokens: where an answer without an end is cut off.
        num_completions: answers a prompt.
        temperature: divides the logits; 0 takes the likeliest token each time.
        seed: an answer's draws depend on this, its prompt's index and its number alone, so that all models meet the
            same draws.
    """

    max_new_tokens: int
    num_completions: int = 1
    temperature: float = 0.0
    seed: int = 0


def load_policy(folder: Path, dtype: str) -> Policy:
    """Load a model and its tokenizer from a folder, an adapter merged into its base.

    Args:
        folder: written by a training stage.
        dtype: of the weights.

    Raises:
        UserError: the model cannot be loaded, or its tokenizer has no chat template.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.chat_template is None:
        raise UserError(f"{folder}: the tokenizer has no chat template; train with --chat_template_path to give it one")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_causal_model(CommonConfig(dtype=dtype), str(folder)).eval().to(device)
    theirs = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = {tokenizer.eos_token_id, *(theirs if isinstance(theirs, list) else [theirs])} - {None}
    return Policy(model, Scorer(model), tokenizer, tuple(sorted(ends)))


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[Message]]) -> list[np.ndarray]:
    """The tokens that an answer to each conversation comes after, int64."""
    return _encode(tokenizer, conversation_texts(tokenizer, prompts, add_generation_prompt=True))


def conversation_texts(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[list[Message]], add_generation_prompt: bool
) -> list[str]:
    """Conversations as text, as in training: within limits, and with the same date in them.

    Raises:
        UserError: the chat template refuses one, or goes beyond a limit.
    """
    try:
        return [render(tokenizer, messages, None, {}, add_generation_prompt) for messages in conversations]
    except RowError as error:
        raise UserError(f"{tokenizer.name_or_path}: {error}", "troubleshooting.md#data") from error


def answer_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[np.ndarray]:
    """The tokens of whole answers, int64, the one that ends the turn included."""
    return [np.append(ids, tokenizer.eos_token_id) for ids in _encode(tokenizer, texts)]


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Any) -> list[np.ndarray]:
    rows = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [np.array(ids, dtype=np.int64) for ids in rows]


def batches_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Cut indices into batches of similar length, longest first, so that a lack of memory shows at once.

    Args:
        lengths: of each item, in tokens.
        batch_size: items in a batch; the last one may have fewer.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def batches_by_tokens(lengths: Sequence[int], num_tokens: int) -> Iterator[list[int]]:
    """Cut indices into batches of at most so many tokens, longest first; a longer item is alone.

    Args:
        lengths: of each item, in tokens.
        num_tokens: of a batch.
    """
    batch: list[int] = []
    total = 0
    for (index,) in batches_by_length(lengths, 1):
        if batch and total + lengths[index] > num_tokens:
            yield batch
            batch, total = [], 0
        batch.append(index)
        total += lengths[index]
    if batch:
        yield batch


def generate_answers(
    policy: Policy, prompts: Sequence[np.ndarray], generation: Generation, batch_size: int, title: str
) -> list[list[Answer]]:
    """Let a model answer.

    Args:
        policy: the model.
        prompts: P arrays of tokens, none empty.
        generation: how the answers are written.
        batch_size: answers written at a time.
        title: what the progress bar says.

    Returns:
        for each prompt, its answers.
    """
    engine = Engine(policy.model, policy.scorer)
    each, length = generation.num_completions, generation.max_new_tokens
    sampling = Sampling(length, policy.end_ids, generation.temperature)
    answers: dict[int, list[Answer]] = {}
    with tqdm(total=len(prompts), desc=title, unit="prompt") as progress:
        for batch in batches_by_length([len(ids) for ids in prompts], max(1, batch_size // each)):
            samples = [index * each + number for index in batch for number in range(each)]
            draws = uniforms(generation.seed, samples, length)
            out = engine.generate(policy.model, [prompts[index] for index in batch], each, sampling, draws)
            texts = policy.tokenizer.batch_decode(out.token_ids, skip_special_tokens=True)
            written = [
                Answer(*parts)
                for parts in zip(texts, out.token_ids, out.policy_logprobs, out.ended.tolist(), strict=True)
            ]
            answers.update({index: written[i * each : (i + 1) * each] for i, index in enumerate(batch)})
            progress.update(len(batch))
    return [answers[index] for index in range(len(prompts))]


def completion_logprobs(
    policy: Policy,
    prompts: Sequence[np.ndarray],
    completions: Sequence[Sequence[np.ndarray]],
    num_tokens: int,
    title: str,
    temperature: float = 1.0,
) -> list[list[np.ndarray]]:
    """The log-prob of every token of given completions. Samples often agree: equal ones of a prompt are scored once.

    Args:
        policy: the model.
        prompts: P arrays of tokens, none empty.
        completions: for each prompt the tokens of its completions, none empty.
        num_tokens: tokens scored at a time; all of one prompt are, where they are more.
        title: what the progress bar says.
        temperature: divides the logits.

    Returns:
        for each prompt and completion, float32, natural logs.
    """
    distinct = [list({ids.tobytes(): ids for ids in own}.values()) for own in completions]
    lengths = [len(prompt) + sum(map(len, own)) for prompt, own in zip(prompts, distinct, strict=True)]
    logprobs: dict[tuple[int, bytes], np.ndarray] = {}
    with tqdm(total=len(prompts), desc=title, unit="prompt") as progress:
        for indices in batches_by_tokens(lengths, num_tokens):
            batch = pack_completions([prompts[i] for i in indices], [distinct[i] for i in indices])
            with torch.no_grad():
                flat = policy.scorer(policy.model, batch.to(policy.model.device), temperature).logprobs
            scored = [(i, ids) for i in indices for ids in distinct[i]]
            parts = np.split(flat.float().cpu().numpy(), np.cumsum([len(ids) for _, ids in scored])[:-1])
            logprobs.update({(i, ids.tobytes()): part for (i, ids), part in zip(scored, parts, strict=True)})
            progress.update(len(indices))
    return [[logprobs[index, ids.tobytes()] for ids in own] for index, own in enumerate(completions)]


def pack_completions(prompts: Sequence[np.ndarray], completions: Sequence[Sequence[np.ndarray]]) -> PackedBatch:
    """Lay prompts and their completions out in one row; all tokens of the completions are targets.

    Args:
        prompts: P arrays of tokens, none empty.
        completions: for each prompt, the tokens of its completions.
    """
    ids: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    parents: list[int] = []
    for prompt, own in zip(prompts, completions, strict=True):
        parent = len(ids)
        ids += [prompt, *own]
        masks += [np.zeros(len(prompt), dtype=np.int8), *(np.ones(len(tokens), dtype=np.int8) for tokens in own)]
        parents += [NO_PARENT, *([parent] * len(own))]
    return pack(ids, masks, parents, num_groups=len(prompts))


def pair_margins(policy: Policy, pairs: Sequence[dict[str, Any]], num_tokens: int, title: str) -> list[float]:
    """By how much a model finds the chosen answer likelier than the rejected one.

    Args:
        policy: the model.
        pairs: rows with `prompt`, `chosen` and `rejected`, each a list of messages; an answer is one message.
        num_tokens: tokens scored at a time.
        title: what the progress bar says.

    Returns:
        log p(chosen | prompt) - log p(rejected | prompt) of each pair, the token that ends the turn included.
    """
    prompts = prompt_tokens(policy.tokenizer, [pair["prompt"] for pair in pairs])
    chosen, rejected = (
        answer_tokens(policy.tokenizer, [pair[side][-1]["content"] for pair in pairs])
        for side in ("chosen", "rejected")
    )
    shared: list[np.ndarray] = []
    rests: list[tuple[np.ndarray, np.ndarray]] = []
    for prompt, right, wrong in zip(prompts, chosen, rejected, strict=True):
        # What both answers begin with is equally likely in both, so it is read as a part of the prompt.
        agreed = min(common_prefix_length(right.tolist(), wrong.tolist()), len(right) - 1, len(wrong) - 1)
        shared.append(np.concatenate([prompt, right[:agreed]]))
        rests.append((right[agreed:], wrong[agreed:]))
    both = completion_logprobs(policy, shared, rests, num_tokens, title)
    return [float(right.sum(dtype=np.float64) - wrong.sum(dtype=np.float64)) for right, wrong in both]
