"""What GRPO and RLOO share in what their losses need: rewards become advantages, and log-probs under the reference and
under the policy as it was stand in each batch. Where the completions come from is sampled.py's.

A method of this kind states how rewards become advantages, and its loss.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object

from posttrain.batch import PackedBatch
from posttrain.config import PolicyConfig
from posttrain.logprobs import TokenStatistics
from posttrain.losses.advantages import Advantages
from posttrain.methods.sampled import SampledMethod
from posttrain.reference import Reference, SyncReference, mixed_precision
from posttrain.rollout.collect import Rollout
from posttrain.rollout.loader import logprobs_told
from posttrain.rollout.metrics import length_metrics
from posttrain.scoring import Scorer
from posttrain.sharding import spreads_weights

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

    from posttrain.trainer import PostTrainer


class PolicyMethod(SampledMethod):
    """A policy that learns from rewards of what it writes."""

    needs_entropy_gradient = False
    kl_in_reward = False
    corrects_sampler = False  # whether the loss wants to know how far another engine was from the policy

    def __init__(self, config: PolicyConfig):
        super().__init__(config)
        self.reference: Reference | None = None

    # -- for a method to state

    def advantages(self, rewards: torch.Tensor, num_generations: int, kl: torch.Tensor | None) -> Advantages:
        """How much better each completion of a generation was than expected.

        Args:
            rewards: (C, R) of all ranks, NaN = no opinion.
            num_generations: G.
            kl: (C,) from `kl_of`.
        """
        raise NotImplementedError

    def kl_of(self, batch: PackedBatch, logprobs: torch.Tensor) -> torch.Tensor:
        """(C,) KL of each completion to the reference, for methods with `kl_in_reward`.

        Args:
            batch: with reference_logprobs.
            logprobs: (N,) of the targets under the policy that sampled them.
        """
        raise NotImplementedError

    def finish_batches(self, batches: list[PackedBatch], trainer: PostTrainer) -> list[PackedBatch]:
        """Called with this process's batches of a generation, complete but for what only this method wants."""
        return batches

    # -- set-up

    def make_scorer(self, model: PreTrainedModel) -> Any:
        self.scorer: Scorer = super().make_scorer(model)
        return functools.partial(
            self.scorer, temperature=self.config.temperature, with_entropy_gradient=self.needs_entropy_gradient
        )

    def setup(
        self, model: PreTrainedModel, scorer: Any, datasets: Sequence[Dataset], arguments: TrainingArguments
    ) -> list[Dataset]:
        datasets = super().setup(model, scorer, datasets, arguments)
        config, half = self.config, mixed_precision(arguments)
        if config.beta and config.use_peft:
            self.reference = Reference(self.scorer, autocast=half)
        elif config.beta:
            packed, spread = config.attn_implementation is None, spreads_weights(arguments)
            self.reference = Reference.frozen_copy(model, arguments.device, packed, spread, half)
        return datasets

    def callbacks(self) -> list[TrainerCallback]:
        if not self.config.sync_ref_model:
            return []
        assert self.reference is not None
        return [SyncReference(self.reference, self.config.ref_model_mixup_alpha, self.config.ref_model_sync_steps)]

    # -- batches

    def complete_generation(
        self,
        trainer: PostTrainer,
        rollouts: list[Rollout],
        own: list[tuple[list[int], PackedBatch]],
        in_evaluation: bool,
    ) -> tuple[list[PackedBatch], dict[str, float], np.ndarray]:
        """What the loss needs beside the tokens: log-probs under the reference and under the policy as it was, and
        advantages, which are those of a completion among all of its generation."""
        # On-policy, unless the policy is updated before a generation has been used up.
        off_policy = not in_evaluation and self.accumulation % self.schedule.batches_per_generation != 0
        corrects = not in_evaluation and self.corrects_sampler
        batches: list[PackedBatch] = []
        kl: list[tuple[int, float, int]] = []  # place, sum over the targets, targets
        for places, batch in own:
            batch = batch.to(trainer.args.device)
            if self.reference is not None:
                batch = self.reference.complete(batch, trainer.model_wrapped, self.config.temperature)
            needs_kl = self.kl_in_reward and self.reference is not None
            if off_policy or needs_kl or corrects:
                drawn = None if in_evaluation else [rollouts[i] for i in places]  # there at another temperature
                logprobs = self._sampled_logprobs(trainer, batch, drawn)
                if needs_kl and not batch.is_filler:
                    lengths = torch.bincount(batch.sequence_ids, minlength=batch.num_sequences)
                    kl += zip(places, self.kl_of(batch, logprobs).tolist(), lengths.tolist(), strict=True)
                if off_policy:
                    batch = dataclasses.replace(batch, old_logprobs=logprobs)
                if corrects:
                    told = logprobs_told([rollouts[i] for i in places], batch)
                    batch = dataclasses.replace(batch, sampler_log_ratio=logprobs - told)
            batches.append(batch)
        kl = sorted(gather_object(kl))
        rewards = torch.from_numpy(np.stack([rollout.rewards for rollout in rollouts]))
        of_sequences = torch.tensor([value for _, value, _ in kl]) if kl else None
        advantages = self.advantages(rewards, self._group_size(in_evaluation), of_sequences)
        batches = [
            dataclasses.replace(batch, advantages=advantages.values[places].to(trainer.args.device))
            for (places, _), batch in zip(own, batches, strict=True)
        ]
        if not in_evaluation:
            batches = self.finish_batches(batches, trainer)
        metrics = length_metrics(rollouts) | advantages.statistics.metrics(self.rewards.names)
        metrics |= self.observer.trouble()
        if kl:
            metrics["kl"] = sum(value for _, value, _ in kl) / max(1, sum(length for _, _, length in kl))
        return [batch.to("cpu") for batch in batches], metrics, advantages.values.numpy()

    def _sampled_logprobs(
        self, trainer: PostTrainer, batch: PackedBatch, rollouts: list[Rollout] | None
    ) -> torch.Tensor:
        """(N,) log-probs of the targets under the policy that sampled them. In full precision those of posttrain's own
        sampler are those of a forward pass; in half, and of another sampler, a forward pass as in training keeps the
        difference between the two out of the ratios."""
        is_exact = trainer.model.dtype == torch.float32 and not (trainer.args.bf16 or trainer.args.fp16)
        if rollouts is not None and is_exact and not self.config.use_vllm:
            return logprobs_told(rollouts, batch)
        return self.score(trainer, batch)

    def score(self, trainer: PostTrainer, batch: PackedBatch) -> torch.Tensor:
        return self.score_as_sampled(trainer, batch).logprobs

    @torch.no_grad()
    def score_as_sampled(self, trainer: PostTrainer, batch: PackedBatch) -> TokenStatistics:
        """A forward pass of the policy as it is now, without dropout."""
        was_training = trainer.model_wrapped.training
        trainer.model_wrapped.eval()
        with trainer.accelerator.autocast():  # as in PostTrainer.score
            statistics = self.scorer(trainer.model_wrapped, batch, self.config.temperature)
        trainer.model_wrapped.train(was_training)
        return statistics

    # -- state

    def state_dict(self) -> dict[str, Any]:
        moving = self.reference.state_dict() if self.reference and self.config.sync_ref_model else {}
        return super().state_dict() | moving

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if self.reference and self.config.sync_ref_model:
            self.reference.load_state_dict(state)
