"""Which completions are sampled together, which process generates them, and which micro-batch trains on them.

Completions of a generation are numbered: the G of its first prompt, those of its second, and so on. They are handed
out in that order, `per_device` at a time, to the processes of the first micro-batch, then to those of the second. So
one process with large batches, and several with small ones, train on the same completions in the same step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from posttrain.config.geometry import steps_of_generation


@dataclass(frozen=True)
class Schedule:
    """The numbers of a run.

    Args:
        num_generations: G, completions of a prompt.
        per_device: completions of a process in a micro-batch.
        steps: micro-batches that a generation is cut into.
        num_iterations: how often each of them is trained on.
        world_size: processes.
        rank: number of this one.
    """

    num_generations: int
    per_device: int
    steps: int
    num_iterations: int = 1
    world_size: int = 1
    rank: int = 0

    @property
    def num_completions(self) -> int:
        """Completions of a generation, over all processes."""
        return self.per_device * self.world_size * self.steps

    @property
    def num_prompts(self) -> int:
        """Prompts of a generation."""
        return self.num_completions // self.num_generations

    @property
    def batches_per_generation(self) -> int:
        """Micro-batches of a process until the next generation."""
        return self.steps * self.num_iterations

    def generated_here(self, num_completions: int) -> range:
        """Those of so many completions that this process generates: an even share, one after the other."""
        first, after = (num_completions * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return range(first, after)

    def trained_here(self, step: int) -> range:
        """The completions of a micro-batch of this process."""
        first = (step * self.world_size + self.rank) * self.per_device
        return range(first, first + self.per_device)


def make_schedule(
    num_generations: int,
    per_device: int,
    accumulation: int,
    generation_batch_size: int | None,
    steps_per_generation: int | None,
    num_iterations: int,
    world_size: int,
    rank: int,
) -> Schedule:
    """The schedule of a training run, checked.

    Args:
        num_generations, generation_batch_size, steps_per_generation, num_iterations: the flags.
        per_device: per_device_train_batch_size, counted in completions.
        accumulation: gradient_accumulation_steps.
        world_size: processes.
        rank: number of this one.

    Raises:
        UserError: the completions of a prompt do not fill the generation evenly, or the micro-batches do not.
    """
    steps = steps_of_generation(
        num_generations, per_device, accumulation, generation_batch_size, steps_per_generation, world_size
    )
    return Schedule(num_generations, per_device, steps, num_iterations, world_size, rank)


class GivenOrder:
    """The order of a stream, which is endless and shuffled by itself.

    Args:
        num_prompts: about as many as a run takes.
    """

    def __init__(self, num_prompts: int):
        self.num_prompts = num_prompts

    def row(self, cursor: int) -> int:
        """The row at a place of the order, counted from 0."""
        return cursor


class PromptOrder:
    """An endless order of prompts: a new permutation of all of them, again and again.

    Args:
        num_prompts: rows of the data set.
        seed: of the permutations; None = in the order of the data set.
    """

    def __init__(self, num_prompts: int, seed: int | None):
        self.num_prompts, self.seed = num_prompts, seed
        self._pass, self._permutation = -1, np.arange(num_prompts)

    def row(self, cursor: int) -> int:
        """The row at a place of the order, counted from 0."""
        number, place = divmod(cursor, self.num_prompts)
        if self.seed is not None and number != self._pass:
            self._pass = number
            self._permutation = np.random.default_rng([self.seed, number]).permutation(self.num_prompts)
        return int(self._permutation[place])
