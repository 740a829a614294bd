"""Group relative policy optimisation: advantages relative to the other completions of a prompt, ratios of tokens (or of
sequences), and the KL divergence from the reference in the loss."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object, reduce
from transformers import TrainerCallback

from posttrain.batch import PackedBatch
from posttrain.config import GRPOConfig
from posttrain.logprobs import TokenStatistics
from posttrain.losses import Loss
from posttrain.losses.advantages import Advantages, group_advantages
from posttrain.losses.entropy import applied_entropy_coef, next_entropy_coef, top_entropy_mask
from posttrain.losses.policy import PolicyOptions, policy_loss, policy_weights
from posttrain.losses.sampler_correction import CorrectionOptions
from posttrain.methods.policy import PolicyMethod

if TYPE_CHECKING:
    from posttrain.trainer import PostTrainer


logger = logging.getLogger(__name__)


class GRPO(PolicyMethod):
    config: GRPOConfig

    def __init__(self, config: GRPOConfig):
        super().__init__(config)
        names = {field.name for field in dataclasses.fields(PolicyOptions)}
        self.options = PolicyOptions(**{name: getattr(config, name) for name in names})
        self.needs_entropy_gradient = bool(config.entropy_coef) or config.use_adaptive_entropy
        if config.loss_type == "luspo" and config.importance_sampling_level == "token":
            logger.warning("--loss_type luspo: in its paper ratios are of sequences (--importance_sampling_level)")
        self.corrects_sampler = config.use_vllm and config.vllm_importance_sampling_correction
        self.correction = CorrectionOptions(
            config.vllm_importance_sampling_mode, config.vllm_largest_weight, config.vllm_importance_sampling_clip_min
        )
        cuts = [name for name, is_cut in _cuts(config).items() if is_cut]
        if self.corrects_sampler and cuts and self.correction.is_of_sequences:
            logger.warning(
                "--%s: vLLM draws from what is left of the distribution; the correction's weight of a completion is "
                "the product over all of its tokens of how much that is, soon next to nothing: "
                "--vllm_importance_sampling_mode token_truncate, or --no_vllm_importance_sampling_correction",
                " --".join(cuts),
            )
        self.entropy_coef = config.entropy_coef
        self.last_entropy: float | None = None
        self._entropy = torch.zeros(2)  # sum and number of tokens of the step under way

    def advantages(self, rewards: torch.Tensor, num_generations: int, kl: torch.Tensor | None) -> Advantages:
        config = self.config
        return group_advantages(
            rewards, num_generations, config.reward_weights, config.scale_rewards, config.multi_objective_aggregation
        )

    def weights(self, batch: PackedBatch) -> dict[str, int]:
        return policy_weights(batch.num_targets, batch.num_sequences, self.options, batch.entropy_mask)

    def loss(self, batch: PackedBatch, statistics: TokenStatistics) -> Loss:
        assert batch.advantages is not None
        if self.config.use_adaptive_entropy and torch.is_grad_enabled():
            entropy = statistics.entropy.detach()
            mask = torch.ones_like(entropy) if batch.entropy_mask is None else batch.entropy_mask
            self._entropy = self._entropy.to(entropy.device) + torch.stack([(entropy * mask).sum(), mask.sum()])
        return policy_loss(
            statistics.logprobs,
            statistics.entropy,
            batch.sequence_ids,
            batch.advantages,
            self.options,
            old_logprobs=batch.old_logprobs,
            reference_logprobs=batch.reference_logprobs,
            entropy_mask=batch.entropy_mask,
            entropy_coef=self._coef() if self.needs_entropy_gradient else None,
            sampler_log_ratio=batch.sampler_log_ratio,
            correction=self.correction,
        )

    def _coef(self) -> float:
        if not self.config.use_adaptive_entropy:
            return self.entropy_coef
        return applied_entropy_coef(self.entropy_coef, self.last_entropy, self.config.entropy_target)

    def callbacks(self) -> list[TrainerCallback]:
        own: list[TrainerCallback] = [_AdaptEntropy(self)] if self.config.use_adaptive_entropy else []
        return super().callbacks() + own

    def step_skipped(self) -> None:
        self._entropy = torch.zeros_like(self._entropy)

    def adapt_entropy(self) -> None:
        """After a step: the coefficient of the next one."""
        total, count = reduce(self._entropy, "sum").tolist()
        self._entropy = torch.zeros_like(self._entropy)
        if count:
            config, self.last_entropy = self.config, total / count
            self.entropy_coef = next_entropy_coef(
                self.entropy_coef,
                self.last_entropy,
                config.entropy_target,
                config.entropy_coef_delta,
                config.entropy_coef_min,
                config.entropy_coef_max,
            )

    @torch.no_grad()
    def finish_batches(self, batches: list[PackedBatch], trainer: PostTrainer) -> list[PackedBatch]:
        """With `top_entropy_quantile`, the mask of the uncertain tokens among those of an optimizer step, of all ranks,
        under the policy that sampled them."""
        if self.config.top_entropy_quantile >= 1:
            return batches
        entropies = [self.score_as_sampled(trainer, batch).entropy for batch in batches]
        finished = []
        for start in range(0, len(batches), self.accumulation):
            step = slice(start, start + self.accumulation)
            own = torch.cat(entropies[step])
            everywhere = gather_object([own.cpu().numpy()])
            mask = top_entropy_mask(torch.from_numpy(np.concatenate(everywhere)), self.config.top_entropy_quantile)
            first = sum(len(one) for one in everywhere[: trainer.args.process_index])
            masks = mask[first : first + len(own)].to(own.device).split([batch.num_targets for batch in batches[step]])
            finished += [
                dataclasses.replace(batch, entropy_mask=part) for batch, part in zip(batches[step], masks, strict=True)
            ]
        return finished

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"entropy_coef": self.entropy_coef, "last_entropy": self.last_entropy}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.entropy_coef, self.last_entropy = state["entropy_coef"], state["last_entropy"]


class _AdaptEntropy(TrainerCallback):
    def __init__(self, method: GRPO):
        self.method = method

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.method.adapt_entropy()


def _cuts(config: GRPOConfig) -> dict[str, bool]:
    """Flags under which completions are not drawn from the whole distribution."""
    return {
        "top_p": config.top_p < 1,
        "top_k": config.top_k > 0,
        "min_p": bool(config.min_p),
        "repetition_penalty": config.repetition_penalty != 1,
        "vllm_structured_outputs_regex": config.vllm_structured_outputs_regex is not None,
    }
