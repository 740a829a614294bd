"""Prompts in the order of a run of GRPO or RLOO: generations, the micro-batches that they are cut into, evaluations."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from posttrain.planning.batches import Load, Steps, mean_and_largest, num_sizes, sums_of, warmup_steps
from posttrain.planning.lengths import Numbers, RowLengths, attended
from posttrain.recurring_sizes import MULTIPLE

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from posttrain.config import PolicyConfig

_MOST_ROWS = 2_000_000  # that are laid out one by one


def steps_of_prompts(
    arguments: TrainingArguments,
    config: PolicyConfig,
    prompts: Numbers,
    num_rows: int | None,
    completion: float,
    processes: int,
    steps_of_generation: int,
) -> Steps:
    """Of a method that samples completions.

    Args:
        arguments: of the run.
        config: of the run.
        prompts: tokens of the prompts of the data, or of some.
        num_rows: prompts that there are; None = nobody knows.
        completion: tokens of a completion.
        processes: that train.
        steps_of_generation: micro-batches that a generation is cut into.
    """
    size, group = arguments.per_device_train_batch_size, config.num_generations
    accumulation = arguments.gradient_accumulation_steps
    of_generation = size * processes * steps_of_generation // group
    number, in_epoch = arguments.max_steps, None
    if num_rows is not None:
        batches = max(1, num_rows // of_generation) * steps_of_generation * config.num_iterations
        in_epoch = max(1, -(-batches // accumulation))
        if number <= 0:
            number = max(1, math.ceil(arguments.num_train_epochs * in_epoch))
    generations = -(-number * accumulation // (steps_of_generation * config.num_iterations))
    wanted = max(1, min(generations * of_generation, _MOST_ROWS))
    order = _prompts_in_order(arguments, config, len(prompts), wanted)
    columns = _columns_of_prompts(prompts[order], size, group, completion)
    mean, largest = mean_and_largest(columns, False)
    sizes = num_sizes(columns[1])
    if completion < config.max_completion_length:
        # They end where they like, so that any number of tokens comes up, sooner or later.
        sizes = min(number * accumulation, math.ceil(largest.tokens / MULTIPLE))
    return Steps(
        number=number,
        in_epoch=in_epoch,
        epochs=None if in_epoch is None else number / in_epoch,
        warmup=warmup_steps(arguments, number),
        rows_in_micro_batch=size,
        micro_batches=accumulation,
        processes=processes,
        rows_in_last=0,
        mean=mean,
        largest=largest,
        sizes=sizes,
        generations=generations,
    )


def _prompts_in_order(arguments: TrainingArguments, config: Any, number: int, wanted: int) -> Numbers:
    from posttrain.rollout.schedule import PromptOrder

    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    order = PromptOrder(number, seed if config.shuffle_dataset else None)
    return np.fromiter((order.row(cursor) for cursor in range(wanted)), dtype=np.int64, count=wanted)


def _columns_of_prompts(prompts: Numbers, size: int, group: int, completion: float) -> list[Numbers]:
    """Micro-batches of `size` completions each, of prompts with `group` completions that follow one another."""
    number = max(1, len(prompts) * group // size)
    first = np.arange(number) * size // group
    last = np.minimum(((np.arange(number) + 1) * size - 1) // group, len(prompts) - 1)
    sums = np.concatenate([[0], np.cumsum(prompts)])
    squares = np.concatenate([[0], np.cumsum(attended(prompts, 0 * prompts))])
    of_prompts = sums[last + 1] - sums[first]
    held = last + 1 - first
    mean_prompt = of_prompts / held
    completions = np.full(number, size)
    longest = np.array([prompts[a : b + 1].max() for a, b in zip(first, last, strict=True)])
    sampled = completions * completion
    keys = completions * (mean_prompt + completion)
    pairs = squares[last + 1] - squares[first] + sampled * ((completion + 1) / 2 + mean_prompt)
    unshared = completions * (mean_prompt + completion)
    padded = completions * (longest + completion)
    found = [held, of_prompts + sampled, sampled, completions, unshared, padded, keys, pairs]
    return [np.asarray(column) for column in found]


def load_of_evaluation(
    rows: RowLengths, size: int, group: int = 1, completion: float | None = None, padded: bool = False
) -> tuple[Load, Load, int]:
    """The mean and the largest batch of an evaluation, and their number.

    Args:
        rows: to evaluate on.
        size: rows of a batch, or completions.
        group: completions of a prompt.
        completion: tokens of one; None: rows are whole.
        padded: the model's batches are padded.
    """
    if completion is None:
        starts = np.arange(0, len(rows), size)
        columns = sums_of(rows, np.arange(len(rows)), starts)
        return (*mean_and_largest(columns, padded), len(starts))
    # The last batch takes what is left over, see EvalRollouts.
    at_a_time = max(1, size // group)
    number = max(1, len(rows) // at_a_time)
    columns = _columns_of_prompts(rows.tokens, min(at_a_time, len(rows)) * group, group, completion)
    return (*mean_and_largest(columns, padded), number)
