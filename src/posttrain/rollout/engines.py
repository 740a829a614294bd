"""What samples, from what, and how: posttrain's own engine from the policy, or vLLM from weights in step with it."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from posttrain.config import PolicyConfig
from posttrain.positions import text_config_of
from posttrain.reference import mixed_precision
from posttrain.rollout.engine import Engine
from posttrain.rollout.sampling import Sampling
from posttrain.rollout.vllm_client import ServerFacts
from posttrain.rollout.vllm_colocated import VLLMInProcess, check_installed
from posttrain.rollout.vllm_engine import VLLMEngine
from posttrain.rollout.vllm_server import check_server, make_server
from posttrain.rollout.vllm_weights import FOLDER, WeightsInStep
from posttrain.scoring import Scorer
from posttrain.sharding import WholePolicy, spreads_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

    from posttrain.batch import PackedBatch
    from posttrain.trainer import PostTrainer

logger = logging.getLogger(__name__)

# What is sampled from within a `with`: the policy as it is now; None: an engine holds it.
Policy = Callable[[], contextlib.AbstractContextManager[Any]]


def check_engine(config: PolicyConfig) -> ServerFacts | None:
    """Whether vLLM, where completions come from it, is there; before weights are loaded.

    Args:
        config: of the run.

    Returns:
        What a server tells of itself; None where there is none.

    Raises:
        UserError: it is not.
    """
    if not config.uses_vllm_server:
        if config.use_vllm:
            check_installed()
        return None
    about = text_config_of(config)
    facts = check_server(config, 0 if about is None else about.vocab_size - 1)
    logger.info("Completions come from vLLM %s at %s (%s).", facts.version, config.vllm_address, facts.model)
    return facts


def make_engine(
    config: PolicyConfig,
    model: PreTrainedModel,
    scorer: Scorer,
    arguments: TrainingArguments,
    longest: int | None = None,
) -> Engine | VLLMEngine:
    """The engine of a run. Made once, after the scorer and before the model is wrapped or adapted.

    Args:
        config: of the run.
        model: the policy.
        scorer: of it.
        arguments: of the run.
        longest: tokens of the longest prompt and completion; None: not known.
    """
    if not config.use_vllm:
        return Engine(model, scorer)
    is_served = config.uses_vllm_server
    if is_served:
        return VLLMEngine(make_server(config, arguments.process_index), config.vllm_structured_outputs_regex)
    backend = VLLMInProcess(config, model, arguments, longest)
    return VLLMEngine(backend, config.vllm_structured_outputs_regex)


def policy_for(
    config: PolicyConfig,
    engine: Engine | VLLMEngine,
    trainer: PostTrainer,
    score: Callable[[PackedBatch], torch.Tensor],
) -> tuple[Policy, Callable[[], None]]:
    """What an engine samples from. Made before the trainer spreads the weights.

    Args:
        config: of the run.
        engine: of the run.
        trainer: of the run.
        score: a batch → (N,) log-probs of its targets under the policy, at the temperature of the sampling.

    Returns:
        The policy, to be called by all processes together; and what to call at the end of the run.
    """
    if isinstance(engine, VLLMEngine):
        folder = Path(trainer.args.output_dir)
        if config.vllm_weights_dir is not None:
            folder = Path(config.vllm_weights_dir).expanduser() / folder.absolute().name
        weights = WeightsInStep(trainer, engine.backend, score, config.temperature, folder / FOLDER)
        return weights, weights.close
    half = mixed_precision(trainer.args)
    whole = WholePolicy(trainer.model, spreads_weights(trainer.args), trainer.args.device, half)
    return lambda: whole.of(trainer.model), lambda: None


def sampling_of(config: PolicyConfig, model: Any, tokenizer: PreTrainedTokenizerBase, in_evaluation: bool) -> Sampling:
    """How completions are sampled.

    Args:
        config: of the run.
        model: the policy.
        tokenizer: its own.
        in_evaluation: with the settings of evaluation.
    """
    setting = functools.partial(config.setting, in_evaluation=in_evaluation)
    return Sampling(
        max_new_tokens=setting("max_completion_length"),
        eos_token_ids=eos_token_ids(model, tokenizer),
        temperature=setting("temperature"),
        top_p=setting("top_p"),
        top_k=setting("top_k"),
        min_p=setting("min_p"),
        repetition_penalty=setting("repetition_penalty"),
    )


def eos_token_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that end a completion: the tokenizer's, and those of the model's own settings for generation."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = own if isinstance(own, list) else [own]
    return tuple(sorted({int(one) for one in [tokenizer.eos_token_id, *several] if one is not None}))
