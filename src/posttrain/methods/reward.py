"""Reward modeling: a prompt, and two children that continue it, each scored at its last token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from posttrain.batch import PackedBatch, pack
from posttrain.config import RewardConfig
from posttrain.losses import Loss
from posttrain.losses.reward import reward_loss, with_calibration_error
from posttrain.methods import Method, Row
from posttrain.methods.pairs import segments_of_pairs
from posttrain.reward_model import load_reward_model, set_padding_token
from posttrain.reward_scoring import RewardScorer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Reward(Method):
    config: RewardConfig

    def load(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        assert self.config.model_name_or_path is not None
        set_padding_token(tokenizer, self.config.model_name_or_path)
        return load_reward_model(self.config, self.config.model_name_or_path)

    def make_scorer(self, model: PreTrainedModel) -> RewardScorer:
        return RewardScorer(model, packed=self.config.attn_implementation is None)

    def collate(self, rows: list[Row]) -> PackedBatch:
        margins, places = [row["margin"] or 0.0 for row in rows], [row["place"] for row in rows]
        return pack(*segments_of_pairs(rows), len(rows), margins=margins, places=places)

    def loss(self, batch: PackedBatch, statistics: torch.Tensor) -> Loss:
        return reward_loss(statistics, batch.margins, self.config.center_rewards_coefficient)

    def finish_metrics(self, values: dict[str, float]) -> dict[str, float]:
        return with_calibration_error(values)
