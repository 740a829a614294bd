"""Supervised fine-tuning: documents side by side, each a segment of its own, packed or not."""

from __future__ import annotations

import numpy as np

from posttrain.batch import NO_PARENT, PackedBatch, pack
from posttrain.config import SFTConfig
from posttrain.logprobs import TokenStatistics
from posttrain.losses import Loss
from posttrain.losses.sft import sft_loss
from posttrain.methods import Method, Row


class SFT(Method):
    config: SFTConfig

    def collate(self, rows: list[Row]) -> PackedBatch:
        ids: list[np.ndarray] = []
        masks: list[np.ndarray] = []
        for row in rows:
            ends = np.cumsum(row.get("lengths", []))[:-1].astype(np.int64)
            ids += np.split(np.asarray(row["input_ids"]), ends)
            masks += np.split(np.asarray(row["loss_mask"]), ends)
        return pack(ids, masks, [NO_PARENT] * len(ids), num_groups=len(ids), places=[row["place"] for row in rows])

    def loss(self, batch: PackedBatch, statistics: TokenStatistics) -> Loss:
        return sft_loss(statistics.logprobs, statistics.entropy, statistics.is_argmax, self.config.loss_type)
