"""One file a method: how its rows become batches, what its loss needs beside the policy, and which loss it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from posttrain.adapters import adapts_head
from posttrain.batch import PackedBatch
from posttrain.losses import Loss
from posttrain.models import load_causal_model
from posttrain.scoring import Scorer

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from torch.utils.data import DataLoader
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

    from posttrain.config import CommonConfig
    from posttrain.trainer import PostTrainer

Row = dict[str, Any]


class Method:
    """What the trainer asks of a method. A subclass names its kind of data and states its collation and loss.

    Args:
        config: the flags of the run.
    """

    makes_batches = False  # from the policy, as it is when they are asked for

    def __init__(self, config: CommonConfig):
        self.config = config

    def load(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        """The model that `model_name_or_path` names, in the form that this method trains."""
        assert self.config.model_name_or_path is not None
        return load_causal_model(self.config, self.config.model_name_or_path)

    def make_scorer(self, model: PreTrainedModel) -> Any:
        """A function of the model, wrapped or not, and a batch: what `loss` is told. Made once, before wrapping."""
        packed = self.config.attn_implementation is None
        return Scorer(model, packed, adopt_head=not adapts_head(self.config, model))

    def check(self, arguments: TrainingArguments, datasets: Sequence[Dataset]) -> None:
        """Called before the model is loaded.

        Raises:
            UserError: the flags do not fit the data or the number of processes.
        """

    def setup(
        self, model: PreTrainedModel, scorer: Any, datasets: Sequence[Dataset], arguments: TrainingArguments
    ) -> list[Dataset]:
        """Called once, with the policy as loaded, before adapters and wrappers; may add columns to the datasets."""
        return list(datasets)

    def callbacks(self) -> list[TrainerCallback]:
        """Callbacks for the trainer."""
        return []

    def loader(self, trainer: PostTrainer, rows: Dataset, in_evaluation: bool) -> DataLoader[PackedBatch] | None:
        """Batches for a trainer, where they are not the rows' own; None: collated rows."""
        return None

    def close(self) -> None:
        """Called when the run ends, in whatever way."""

    def depends_on(self) -> list[str]:
        """What a run's result depends on beside flags, rows and the weights it starts from; for its fingerprint."""
        return []

    def made_from(self) -> dict[str, Any]:
        """Files that a run is made from beside rows and models: sections of provenance.json; by the first process."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What this process's part of a checkpoint holds beside the trainer's: tensors, numbers, lists and dicts."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was called."""

    def sampling_state(self) -> dict[str, Any] | None:
        """Of what samples batches and may be lost on the way: where it stands. None: there is no such thing."""
        return None

    def load_sampling_state(self, state: dict[str, Any]) -> None:
        """Goes back to where `sampling_state` was called."""

    def collate(self, rows: list[Row]) -> PackedBatch:
        """Tokenised rows of the dataset → one batch, on the CPU."""
        raise NotImplementedError

    def weights(self, batch: PackedBatch) -> dict[str, int]:
        """What the terms of this method's loss are divided by, before any forward pass."""
        return batch.weights()

    def complete(self, batch: PackedBatch, policy: torch.nn.Module) -> PackedBatch:
        """Adds what the loss needs and the dataset does not hold; called without gradient, on the device."""
        return batch

    def loss(self, batch: PackedBatch, statistics: Any) -> Loss:
        """The loss of a batch.

        Args:
            batch: complete.
            statistics: what the scorer says of it under the policy.
        """
        raise NotImplementedError

    def step_skipped(self) -> None:
        """Called when an optimizer step is not applied: what its forward passes have left is to be forgotten."""

    def finish_metrics(self, values: dict[str, float]) -> dict[str, float]:
        """Metrics as they are logged, from ratios over all batches and ranks since the last line."""
        return values
