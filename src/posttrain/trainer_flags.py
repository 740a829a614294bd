"""Flags of transformers whose own code counts on dicts of padded tensors, for packed batches."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import RandomSampler, Sampler
from transformers import Trainer
from transformers.trainer_pt_utils import get_length_grouped_indices

from posttrain.batch import NO_PARENT, PackedBatch
from posttrain.errors import UserError

# The columns of tokenised rows that hold tokens.
TOKEN_COLUMNS = ("input_ids", "prompt_ids", "chosen_ids", "rejected_ids")
_PIECE = 2**14


class PackedTrainer(Trainer):
    """transformers.Trainer, with those of its flags that would fail on a packed batch or mean another thing there.

    Args:
        **kwargs: of transformers.Trainer.
    """

    def __init__(self, **kwargs: Any):
        arguments = kwargs["args"]
        if arguments.train_sampling_strategy in ("group_by_length", "batch_rebalance"):
            for name in ("train_dataset", "eval_dataset"):
                if isinstance(kwargs.get(name), Dataset):
                    kwargs[name] = with_lengths(kwargs[name], arguments.length_column_name)
        super().__init__(**kwargs)
        # transformers' own noise would be scaled by the length of the whole row.
        self.neftune_noise_alpha = None
        self._noise = EmbeddingNoise(arguments.neftune_noise_alpha) if arguments.neftune_noise_alpha else None
        if self._noise is not None:
            self._noise.attach(self.accelerator.unwrap_model(self.model))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """The order of rows; that by length comes from the seed and the epoch, whatever else has been drawn."""
        if self.args.train_sampling_strategy != "group_by_length":
            sampler = super()._get_train_sampler(train_dataset)
            is_plain = type(sampler) is RandomSampler and self.args.accelerator_config.use_seedable_sampler
            return Shuffled(sampler.data_source, self.args.data_seed) if is_plain else sampler
        rows = self.train_dataset if train_dataset is None else train_dataset
        together = self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return LengthGroups(list(rows[self.args.length_column_name]), together, seed)

    def training_step(self, model: nn.Module, inputs: PackedBatch, *args: Any, **kwargs: Any) -> torch.Tensor:
        """A forward and backward pass, with noise on the embeddings where NEFTune is asked for."""
        if self._noise is None:
            return super().training_step(model, inputs, *args, **kwargs)
        self._noise.batch = inputs
        try:
            return super().training_step(model, inputs, *args, **kwargs)
        finally:
            self._noise.batch = None

    def _track_num_input_tokens(self, inputs: PackedBatch) -> None:
        """For `--include_num_input_tokens_seen`; there is no padding to be told from tokens."""
        if self.args.include_num_input_tokens_seen != "no":
            here = torch.tensor(0 if inputs.is_filler else inputs.num_tokens, device=self.args.device)
            self.state.num_input_tokens_seen += int(self.accelerator.gather(here).sum().item())

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        name = self.args.metric_for_best_model
        if name is not None and name not in metrics and f"eval_{name}" not in metrics:
            known = ", ".join(sorted(key.removeprefix("eval_") for key in metrics))
            raise UserError(f"--metric_for_best_model {name}: evaluation has no such metric, but {known}")
        return super()._determine_best_metric(metrics, trial)


def with_lengths(rows: Dataset, column: str) -> Dataset:
    """The rows with a column of their numbers of tokens, which samplers by length look for.

    Args:
        rows: tokenised.
        column: its name.
    """
    table = rows.with_format("arrow")[:]
    counts = [pc.list_value_length(table[name]).to_numpy() for name in TOKEN_COLUMNS if name in table.column_names]
    lengths = pa.array(np.sum(counts, axis=0).astype(np.int64))
    rows = rows.remove_columns(column) if column in rows.column_names else rows
    return rows.add_column(column, lengths.to_numpy())


class Shuffled(Sampler[int]):
    """Rows in the order of accelerate's SeedableRandomSampler, which holds it as a list of as many Python integers.

    Args:
        rows: as many as there are.
        seed: with the number of the epoch, decides; None = what torch was seeded with.
    """

    def __init__(self, rows: Sized, seed: int | None):
        self.rows, self.epoch = rows, 0
        self.seed = torch.initial_seed() if seed is None else seed

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(self.seed + self.epoch))
        for piece in order.split(_PIECE):
            yield from piece.tolist()

    def set_epoch(self, epoch: int) -> None:
        """The order of another epoch."""
        self.epoch = epoch


class LengthGroups(Sampler[int]):
    """Rows in a random order in which those of similar lengths stand together.

    Args:
        lengths: of the rows.
        together: rows of an optimizer step.
        seed: with the number of the epoch, decides.
    """

    def __init__(self, lengths: list[int], together: int, seed: int):
        self.lengths, self.together, self.seed, self.epoch = lengths, together, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        draws = int(np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)[0])
        generator = torch.Generator().manual_seed(draws)
        return iter(get_length_grouped_indices(self.lengths, self.together, generator=generator))

    def set_epoch(self, epoch: int) -> None:
        """The order of another epoch."""
        self.epoch = epoch


class EmbeddingNoise:
    """NEFTune (arXiv 2310.05914, algorithm 1): uniform noise on the embeddings of a training step, of the size
    alpha / sqrt(L · H) for a sequence of L tokens. A prompt that several completions continue counts with the longest.

    Args:
        alpha: scale of the noise.
    """

    def __init__(self, alpha: float):
        self.alpha = alpha
        self.batch: PackedBatch | None = None  # the one under way, in a training step only

    def attach(self, model: Any) -> None:
        """Add noise to what the input embeddings of a model, with or without adapters, give while training."""
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        base.get_input_embeddings().register_forward_hook(self._add)

    def _add(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        if self.batch is None or not module.training:
            return None
        rows, length, width = output.shape
        if rows == 1 and length >= self.batch.input_ids.shape[0]:  # there may be tokens behind it that do not count
            of_tokens = tokens_of_sequences(self.batch)
            of_tokens = np.pad(of_tokens, (0, length - len(of_tokens)), constant_values=1)
            lengths = torch.from_numpy(of_tokens).to(output.device, non_blocking=True)
        else:  # padded rows
            lengths = torch.full((length,), length, device=output.device)
        scale = self.alpha / (lengths * width).sqrt()
        noise = torch.empty_like(output).uniform_(-1, 1)
        return output + noise * scale.to(output.dtype)[None, :, None]


def tokens_of_sequences(batch: PackedBatch) -> np.ndarray:
    """(T,) for each token of the row, the number of tokens of the longest sequence that it is part of.

    Args:
        batch: packed.
    """
    longest = np.array(batch.segments.key_lengths, dtype=np.int64)
    for index, parent in enumerate(batch.segments.parents):
        if parent != NO_PARENT:
            longest[parent] = max(longest[parent], longest[index])
    return np.repeat(longest, np.asarray(batch.segments.lengths))
