"""From rollouts to batches: the data that GRPO and RLOO train on.

To the trainer, `TrainRollouts` is a data set of ready batches, read one after the other. When the last batch of a
generation has been trained on `num_iterations` times, the next one asked for is sampled from the policy as it is then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from posttrain import stop
from posttrain.batch import NO_PARENT, PackedBatch, Segments, pack
from posttrain.errors import EngineLost, RunFailed, Stopped
from posttrain.rollout.collect import Collector, Rollout
from posttrain.rollout.schedule import GivenOrder, PromptOrder, Schedule

if TYPE_CHECKING:
    from datasets import Dataset

# A batch of this process, and which of the generation's rollouts are in it.
Own = tuple[list[int], PackedBatch]
# What a method makes of a generation: all rollouts, and the batches → the batches, metrics, and advantages of all.
Complete = Callable[[list[Rollout], list[Own]], tuple[list[PackedBatch], dict[str, float], np.ndarray]]
Observe = Callable[[list[Rollout], np.ndarray, dict[str, float]], None]
# Rewards (C, R) → which of the C / G prompts teach nothing (bool).
WithoutVariance = Callable[[np.ndarray], np.ndarray]


def pack_rollouts(rollouts: Sequence[Rollout], rows: Dataset, mask_truncated: bool) -> PackedBatch:
    """Completions as segments, each prompt once for all that follow one another.

    Args:
        rollouts: C completions.
        rows: the prompts' data set.
        mask_truncated: no targets in completions that were cut off.
    """
    ids: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    parents: list[int] = []
    parent, row = NO_PARENT, -1
    places: list[str] = []  # of the prompts
    for rollout in rollouts:
        if rollout.row != row:
            row, parent = rollout.row, len(ids)
            of_row = rows[row]
            prompt = np.asarray(of_row["prompt_ids"], dtype=np.int64)
            ids.append(prompt)
            masks.append(np.zeros(len(prompt), dtype=np.int8))
            parents.append(NO_PARENT)
            places.append(of_row["place"])
        ids.append(rollout.token_ids)
        is_target = rollout.ended or not mask_truncated
        masks.append(np.full(len(rollout.token_ids), is_target, dtype=np.int8))
        parents.append(parent)
    return pack(ids, masks, parents, num_groups=len(places), places=places)


def logprobs_told(rollouts: Sequence[Rollout], batch: PackedBatch) -> torch.Tensor:
    """(N,) log-probs of a batch's targets, as the sampler has told them.

    Args:
        rollouts: that the batch was packed from, in their order.
        batch: of them; those that are masked have no targets.
    """
    with_targets = torch.bincount(batch.sequence_ids, minlength=batch.num_sequences).tolist()
    kept = [rollout.logprobs for rollout, count in zip(rollouts, with_targets, strict=True) if count]
    return torch.from_numpy(np.concatenate([np.zeros(0, np.float32), *kept])).to(batch.input_ids.device)


class TrainRollouts(torch.utils.data.Dataset[PackedBatch]):
    """Batches to train on.

    Args:
        collector: samples and scores.
        schedule: of the run.
        order: of the prompts.
        complete: the method's part.
        observe: told of every generation: its rollouts, their advantages, and its metrics.
        without_variance: which groups dynamic sampling replaces.
        mask_truncated: as for `pack_rollouts`.
        resampling_rounds: how often groups without variance are replaced; 0 = never.
    """

    def __init__(
        self,
        collector: Collector,
        schedule: Schedule,
        order: PromptOrder | GivenOrder,
        complete: Complete,
        observe: Observe,
        without_variance: WithoutVariance,
        mask_truncated: bool = False,
        resampling_rounds: int = 0,
    ):
        self.collector, self.schedule, self.order = collector, schedule, order
        self.complete, self.observe, self.without_variance = complete, observe, without_variance
        self.mask_truncated, self.resampling_rounds = mask_truncated, resampling_rounds
        self.position = 0  # batches given out
        self.cursor = 0  # prompts taken from the order
        self.buffer: list[PackedBatch] = []

    def __len__(self) -> int:
        """Batches in which about every prompt comes up once."""
        return max(1, self.order.num_prompts // self.schedule.num_prompts) * self.schedule.batches_per_generation

    def __getitem__(self, index: int) -> PackedBatch:
        """The next batch, whatever the index: what it holds depends on the policy that trained on those before."""
        place = self.position % self.schedule.batches_per_generation
        if place == 0:
            self.buffer = self._generation()
        self.position += 1
        return self.buffer[place % self.schedule.steps]

    def state_dict(self) -> dict[str, Any]:
        """What a later process needs to go on: tensors, numbers and lists."""
        return {"position": self.position, "cursor": self.cursor, "buffer": [_as_plain(one) for one in self.buffer]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was called."""
        self.position, self.cursor = state["position"], state["cursor"]
        self.buffer = [_from_plain(one) for one in state["buffer"]]

    def _generation(self) -> list[PackedBatch]:
        rollouts, counts = self._rollouts()
        places = [list(self.schedule.trained_here(step)) for step in range(self.schedule.steps)]
        own = [(of_one, self._pack([rollouts[i] for i in of_one])) for of_one in places]
        batches, metrics, advantages = self.complete(rollouts, own)
        self.observe(rollouts, advantages, metrics | counts)
        return batches

    def _pack(self, rollouts: list[Rollout]) -> PackedBatch:
        return pack_rollouts(rollouts, self.collector.rows, self.mask_truncated)

    def _next_prompts(self, number: int) -> list[tuple[int, int]]:
        self.cursor += number
        return [(cursor, self.order.row(cursor)) for cursor in range(self.cursor - number, self.cursor)]

    def _rollouts(self) -> tuple[list[Rollout], dict[str, float]]:
        """The rollouts of a generation, groups without variance replaced; and how often that happened."""
        wanted = self.schedule.num_prompts
        rollouts = self.collector.collect(self._next_prompts(wanted))
        if not self.resampling_rounds:
            return rollouts, {}
        good, flat = self._divide(rollouts)
        num_flat, num_sampled = len(flat), wanted
        for _ in range(self.resampling_rounds):
            missing = wanted - len(good)
            if not missing:
                break
            good += self._divide(self.collector.collect(self._next_prompts(missing)))[0]
            num_sampled += missing
        replaced = len(good) - (wanted - num_flat)
        counts = {
            "dynamic_sampling/replaced": float(replaced),
            "dynamic_sampling/kept_without_variance": float(wanted - len(good)),
            "dynamic_sampling/prompts_sampled": float(num_sampled),
        }
        return [rollout for one in (good + flat)[:wanted] for rollout in one], counts

    def _divide(self, rollouts: list[Rollout]) -> tuple[list[list[Rollout]], list[list[Rollout]]]:
        """Groups that tell their completions apart, and those that do not."""
        group = self.schedule.num_generations
        groups = [rollouts[i : i + group] for i in range(0, len(rollouts), group)]
        is_flat = self.without_variance(np.stack([rollout.rewards for rollout in rollouts]))
        return (
            [one for one, flat in zip(groups, is_flat, strict=True) if not flat],
            [one for one, flat in zip(groups, is_flat, strict=True) if flat],
        )


class EvalRollouts(torch.utils.data.Dataset[PackedBatch]):
    """Batches to evaluate on: every prompt of the data set in its order, with the same draws every time.

    Args:
        collector: samples and scores.
        num_prompts: prompts at a time.
        complete, observe: as for training.
    """

    def __init__(self, collector: Collector, num_prompts: int, complete: Complete, observe: Observe):
        self.collector, self.num_prompts = collector, num_prompts
        self.complete, self.observe = complete, observe

    def __len__(self) -> int:
        return max(1, len(self.collector.rows) // self.num_prompts)

    def __getitem__(self, index: int) -> PackedBatch:
        # The last batch takes what is left over: every process has something to do in each.
        first, is_last = index * self.num_prompts, index == len(self) - 1
        rows = range(first, len(self.collector.rows) if is_last else first + self.num_prompts)
        try:
            rollouts = self.collector.collect([(row, row) for row in rows])
        except EngineLost as lost:
            where = "in the middle of an evaluation; the same command goes on from the last checkpoint"
            if lost.asked is not None:
                raise Stopped(lost.asked, f"stopped by {stop.name_of(lost.asked)} {where}") from lost
            raise RunFailed(f"{lost}, {where}", lost.page) from lost
        own_places = list(self.collector.share(len(rollouts)))
        places = own_places or [0]  # somebody's, with nothing of it counted: the others' calls want this process too
        own = pack_rollouts([rollouts[i] for i in places], self.collector.rows, mask_truncated=False)
        own = dataclasses.replace(own, is_filler=not own_places)
        batches, metrics, advantages = self.complete(rollouts, [(places, own)])
        self.observe(rollouts, advantages, metrics)
        return batches[0]


def _as_plain(batch: PackedBatch) -> dict[str, Any]:
    fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch) if f.name != "segments"}
    return fields | {"lengths": list(batch.segments.lengths), "parents": list(batch.segments.parents)}


def _from_plain(fields: dict[str, Any]) -> PackedBatch:
    fields = dict(fields)
    segments = Segments(tuple(fields.pop("lengths")), tuple(fields.pop("parents")))
    return PackedBatch(segments=segments, **fields)
