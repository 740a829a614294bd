"""Direct preference optimisation: a prompt, and two children that continue it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from posttrain.batch import PackedBatch, pack
from posttrain.cache import cache_root
from posttrain.config import DPOConfig
from posttrain.logprobs import TokenStatistics
from posttrain.losses import Loss
from posttrain.losses.preference import PreferenceOptions, preference_loss
from posttrain.methods import Method, Row
from posttrain.methods.pairs import segments_of_pairs
from posttrain.models import load_causal_model
from posttrain.reference import COLUMN, Reference, SyncReference, mixed_precision, with_stored_logprobs
from posttrain.sharding import spreads_weights

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

    from posttrain.scoring import Scorer


class DPO(Method):
    config: DPOConfig

    def __init__(self, config: DPOConfig):
        super().__init__(config)
        self.reference: Reference | None = None
        self.options = PreferenceOptions(
            beta=config.beta,
            label_smoothing=config.label_smoothing,
            f_divergence_type=config.f_divergence_type,
            f_alpha_divergence_coef=config.f_alpha_divergence_coef,
            discopop_tau=config.discopop_tau,
        )

    def setup(
        self, model: PreTrainedModel, scorer: Scorer, datasets: Sequence[Dataset], arguments: TrainingArguments
    ) -> list[Dataset]:
        config, device = self.config, arguments.device
        packed, spread = config.attn_implementation is None, spreads_weights(arguments)
        half = mixed_precision(arguments)
        if config.ref_model_name_or_path:
            path, flag = config.ref_model_name_or_path, "--ref_model_name_or_path"
            other = load_causal_model(config, path, flag, revision="main")  # model_revision is that of the policy
            self.reference = Reference.frozen(other, device, packed, spread, half)
        elif config.precompute_ref_log_probs:
            self.reference = Reference(scorer, model.eval(), half)
        elif config.use_peft:
            self.reference = Reference(scorer, autocast=half)
        else:
            self.reference = Reference.frozen_copy(model, device, packed, spread, half)
        if not config.precompute_ref_log_probs:
            return list(datasets)
        folder = cache_root(config.cache_dir) / "reference"
        batch_size = config.precompute_ref_batch_size or config.per_device_train_batch_size or 8
        reference, self.reference = self.reference, None
        assert reference.model is not None
        before = reference.model.device  # a policy whose weights are to be spread waits on the CPU
        reference.model.to(device)
        stored = [with_stored_logprobs(reference, rows, self.collate, folder, batch_size) for rows in datasets]
        reference.model.to(before)
        return stored

    def callbacks(self) -> list[TrainerCallback]:
        if not self.config.sync_ref_model:
            return []
        assert self.reference is not None
        return [SyncReference(self.reference, self.config.ref_model_mixup_alpha, self.config.ref_model_sync_steps)]

    def state_dict(self) -> dict[str, Any]:
        return self.reference.state_dict() if self.reference and self.config.sync_ref_model else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.reference and self.config.sync_ref_model:
            self.reference.load_state_dict(state)

    def collate(self, rows: list[Row]) -> PackedBatch:
        stored = np.concatenate([row[COLUMN] for row in rows]) if COLUMN in rows[0] else None
        places = [row["place"] for row in rows]
        return pack(*segments_of_pairs(rows), len(rows), reference_logprobs=stored, places=places)

    def weights(self, batch: PackedBatch) -> dict[str, int]:
        return batch.weights() | {"chosen_targets": int((batch.sequence_ids % 2 == 0).sum())}

    def complete(self, batch: PackedBatch, policy: torch.nn.Module) -> PackedBatch:
        if batch.reference_logprobs is not None:
            return batch
        assert self.reference is not None
        return self.reference.complete(batch, policy)

    def loss(self, batch: PackedBatch, statistics: TokenStatistics) -> Loss:
        assert batch.reference_logprobs is not None
        config = self.config
        loss = preference_loss(
            statistics.logprobs,
            batch.reference_logprobs,
            batch.sequence_ids,
            batch.num_groups,
            loss_types=config.loss_type,
            loss_weights=config.loss_weights or [1.0] * len(config.loss_type),
            options=self.options,
            ld_alpha=config.ld_alpha,
            log_collision=statistics.log_collision if config.use_weighting else None,
        )
        chosen = (batch.sequence_ids % 2 == 0).float()
        num_targets, num_chosen = float(batch.num_targets), chosen.sum()
        loss.metrics.update(
            {
                "entropy": (statistics.entropy.detach().sum(), num_targets),
                "mean_token_accuracy": ((statistics.is_argmax * chosen).sum(), num_chosen),
                "logits/chosen": ((statistics.mean_logit.detach() * chosen).sum(), num_chosen),
                "logits/rejected": ((statistics.mean_logit.detach() * (1 - chosen)).sum(), num_targets - num_chosen),
            }
        )
        return loss
