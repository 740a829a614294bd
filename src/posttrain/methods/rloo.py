"""REINFORCE leave-one-out: the mean reward of a prompt's other completions as baseline, ratios of sequences, and the KL
divergence from the reference in the reward."""

from __future__ import annotations

import torch

from posttrain.batch import PackedBatch
from posttrain.config import RLOOConfig
from posttrain.logprobs import TokenStatistics
from posttrain.losses import Loss
from posttrain.losses.advantages import Advantages, leave_one_out_advantages
from posttrain.losses.leave_one_out import leave_one_out_loss
from posttrain.losses.ratios import kl_estimates, sums_by_sequence
from posttrain.methods.policy import PolicyMethod


class RLOO(PolicyMethod):
    config: RLOOConfig
    kl_in_reward = True

    def kl_of(self, batch: PackedBatch, logprobs: torch.Tensor) -> torch.Tensor:
        assert batch.reference_logprobs is not None
        kl = kl_estimates(logprobs, batch.reference_logprobs, self.config.kl_estimator)
        return sums_by_sequence(kl, batch.sequence_ids, batch.num_sequences)

    def advantages(self, rewards: torch.Tensor, num_generations: int, kl: torch.Tensor | None) -> Advantages:
        config = self.config
        clip = config.reward_clip_range
        low_and_high = None if clip is None else (clip[0], clip[1])
        return leave_one_out_advantages(
            rewards, num_generations, kl, config.beta, config.reward_weights, low_and_high, config.normalize_advantages
        )

    def loss(self, batch: PackedBatch, statistics: TokenStatistics) -> Loss:
        assert batch.advantages is not None
        return leave_one_out_loss(
            statistics.logprobs,
            statistics.entropy,
            batch.sequence_ids,
            batch.advantages,
            batch.old_logprobs,
            self.config.epsilon,
            self.config.epsilon_high,
        )
