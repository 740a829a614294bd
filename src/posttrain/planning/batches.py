"""Rows in the order of a run: how many optimizer steps there are, and what the micro-batches hold."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from posttrain.planning.lengths import Numbers, RowLengths
from posttrain.recurring_sizes import MULTIPLE

if TYPE_CHECKING:
    from transformers import TrainingArguments

_MOST_ROWS = 2_000_000  # of a run that are laid out one by one; what follows is like it
_MOST_DRAWN = 5_000  # micro-batches drawn where the rows are a sample


@dataclass(frozen=True)
class Load:
    """What a micro-batch holds, or what all of them hold on average.

    Args:
        rows: documents, pairs, or prompts.
        tokens: in the packed layout.
        targets: with a loss.
        sequences: documents, or completions.
        unshared: tokens with a shared prompt counted for each of its sequences.
        padded: tokens of a rectangle, a row a sequence, as wide as the longest.
        keys: keys of segments with a parent.
        pairs: of a query and a key that it sees.
    """

    rows: float
    tokens: float
    targets: float
    sequences: float
    unshared: float
    padded: float
    keys: float
    pairs: float


@dataclass(frozen=True)
class Steps:
    """The numbers of a run.

    Args:
        number: optimizer steps.
        in_epoch: steps of a pass over the rows; None where nobody knows how many rows there are.
        epochs: passes.
        warmup: steps of rising learning rate.
        rows_in_micro_batch: the flag; completions of grpo and rloo.
        micro_batches: of a process in a step.
        processes: that train.
        rows_in_last: of the last micro-batch of an epoch, where it is not full; else 0.
        mean, largest: micro-batches.
        sizes: of rows that products are compiled for, where they are (recurring_sizes.py), over all micro-batches.
        generations: of completions.
    """

    number: int
    in_epoch: int | None
    epochs: float | None
    warmup: int
    rows_in_micro_batch: int
    micro_batches: int
    processes: int
    rows_in_last: int
    mean: Load
    largest: Load
    sizes: int
    generations: int = 0

    @property
    def rows_in_step(self) -> int:
        return self.rows_in_micro_batch * self.micro_batches * self.processes

    @property
    def tokens_in_step(self) -> float:
        """In the packed layout, of all processes."""
        return self.mean.tokens * self.micro_batches * self.processes


def steps_of_rows(
    arguments: TrainingArguments, rows: RowLengths, num_rows: int | None, is_sampled: bool, processes: int, padded: bool
) -> Steps:
    """Of a method that trains on rows of data.

    Args:
        arguments: of the run.
        rows: of all of the data, or of some.
        num_rows: that there are; None = nobody knows.
        is_sampled: `rows` are some of them.
        processes: that train.
        padded: the model's batches are padded: the largest one is that of the largest rectangle.
    """
    size, accumulation = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    number, in_epoch = arguments.max_steps, None
    last = 0
    if num_rows is not None:
        whole, rest = divmod(num_rows, size)
        batches = whole + bool(rest and not arguments.dataloader_drop_last)
        batches = batches // processes if arguments.dataloader_drop_last else -(-batches // processes)
        in_epoch = max(1, -(-batches // accumulation))
        last = 0 if arguments.dataloader_drop_last else rest
        if number <= 0:
            number = max(1, math.ceil(arguments.num_train_epochs * in_epoch))
    needed = number * accumulation * processes
    loads = _drawn(rows, size, needed) if is_sampled else _in_order(arguments, rows, size, needed)
    mean, largest = mean_and_largest(loads, padded)
    return Steps(
        number=number,
        in_epoch=in_epoch,
        epochs=None if in_epoch is None else number / in_epoch,
        warmup=warmup_steps(arguments, number),
        rows_in_micro_batch=size,
        micro_batches=accumulation,
        processes=processes,
        rows_in_last=last,
        mean=mean,
        largest=largest,
        sizes=num_sizes(loads[5], fills=False) if padded else num_sizes(loads[1]),
    )


def num_sizes(tokens: Numbers, fills: bool = True) -> int:
    """How many sizes rows of so many tokens are computed in.

    Args:
        tokens: of each.
        fills: whether they are filled up to a multiple.
    """
    return len(np.unique(-(-np.asarray(tokens) // MULTIPLE) if fills else tokens))


def warmup_steps(arguments: TrainingArguments, number: int) -> int:
    """As transformers counts them: below 1 they are a share of all steps."""
    given = float(arguments.warmup_steps or 0)
    return int(given) if given >= 1 else math.ceil(number * given)


def micro_batches(arguments: TrainingArguments, num_rows: int, size: int) -> Iterator[Numbers]:
    """Row numbers of each micro-batch of an epoch, epoch after epoch, without end.

    Args:
        arguments: of the run.
        num_rows: that there are.
        size: rows of a micro-batch.
    """
    epoch = 0
    while True:
        order = _order(arguments, num_rows, epoch)
        end = num_rows - num_rows % size if arguments.dataloader_drop_last else num_rows
        yield from (order[start : start + size] for start in range(0, max(end, 1), size))
        epoch += 1


def _order(arguments: TrainingArguments, num_rows: int, epoch: int) -> Numbers:
    """The rows as the run's sampler takes them; by length (group_by_length) as at random."""
    from posttrain.trainer_flags import Shuffled

    if arguments.train_sampling_strategy == "sequential":
        return np.arange(num_rows)
    sampler = Shuffled(range(num_rows), arguments.seed if arguments.data_seed is None else arguments.data_seed)
    sampler.set_epoch(epoch)
    return np.fromiter(sampler, dtype=np.int64, count=num_rows)


def _in_order(arguments: TrainingArguments, rows: RowLengths, size: int, needed: int) -> list[Numbers]:
    number, total = len(rows), 0
    parts: list[list[Numbers]] = []
    epoch, most = 0, min(needed, max(1, _MOST_ROWS // size))
    while total < most:
        order = _order(arguments, number, epoch)
        if arguments.dataloader_drop_last and number >= size:
            order = order[: number - number % size]
        starts = np.arange(0, len(order), size)[: most - total]
        parts.append(sums_of(rows, order[: starts[-1] + size], starts))
        total, epoch = total + len(starts), epoch + 1
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _drawn(rows: RowLengths, size: int, needed: int) -> list[Numbers]:
    number = min(needed, _MOST_DRAWN, max(1, _MOST_ROWS // size))
    order = np.random.default_rng(0).integers(0, len(rows), number * size)
    return sums_of(rows, order, np.arange(0, len(order), size))


def sums_of(rows: RowLengths, order: Numbers, starts: Numbers) -> list[Numbers]:
    """Columns of Load for micro-batches that begin at these places of the order."""

    def summed(values: Numbers) -> Numbers:
        found: Numbers = np.add.reduceat(values[order], starts)
        return found

    sequences = summed(rows.sequences)
    padded = sequences * np.maximum.reduceat(rows.longest[order], starts)
    sizes = np.diff(np.append(starts, len(order)))
    names = (rows.tokens, rows.targets, rows.sequences, rows.unshared)
    return [sizes, *map(summed, names), padded, summed(rows.keys), summed(rows.pairs)]


def mean_and_largest(columns: list[Numbers], padded: bool) -> tuple[Load, Load]:
    """Of micro-batches, given the columns of Load."""
    index = int(np.argmax(columns[5] if padded else columns[1]))
    mean = Load(*(float(column.mean()) for column in columns))
    return mean, Load(*(float(column[index]) for column in columns))
