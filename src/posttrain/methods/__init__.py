"""One file a method: how its rows become batches, what its loss needs beside the policy, and which loss it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from posttrain.batch import PackedBatch
from posttrain.logprobs import TokenStatistics
from posttrain.losses import Loss

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, TrainerCallback

    from posttrain.config import CommonConfig
    from posttrain.scoring import Scorer

Row = dict[str, Any]


class Method:
    """What the trainer asks of a method. A subclass names its kind of data and states its collation and loss.

    Args:
        config: the flags of the run.
    """

    def __init__(self, config: CommonConfig):
        self.config = config

    def setup(
        self, model: PreTrainedModel, scorer: Scorer, datasets: Sequence[Dataset], device: torch.device
    ) -> list[Dataset]:
        """Called once, with the policy as loaded, before adapters and wrappers; may add columns to the datasets."""
        return list(datasets)

    def callbacks(self) -> list[TrainerCallback]:
        """Callbacks for the trainer."""
        return []

    def collate(self, rows: list[Row]) -> PackedBatch:
        """Tokenised rows of the dataset → one batch, on the CPU."""
        raise NotImplementedError

    def weights(self, batch: PackedBatch) -> dict[str, int]:
        """What the terms of this method's loss are divided by, before any forward pass."""
        return batch.weights()

    def complete(self, batch: PackedBatch, policy: torch.nn.Module) -> PackedBatch:
        """Adds what the loss needs and the dataset does not hold; called without gradient, on the device."""
        return batch

    def loss(self, batch: PackedBatch, statistics: TokenStatistics) -> Loss:
        """The loss of a batch whose targets have been scored under the policy."""
        raise NotImplementedError
