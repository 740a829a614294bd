"""What is told of generations: figures for the next log line, completions for people to read."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate.utils import gather_object

from posttrain.losses.advantages import reward_statistics
from posttrain.rollout.completions import SHOWN, completions_table, show_completions, write_completions
from posttrain.rollout.metrics import as_loss, length_metrics

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from posttrain.config import PolicyConfig
    from posttrain.rollout.collect import Rollout
    from posttrain.rollout.loader import Observe
    from posttrain.rollout.rewards.table import Rewards
    from posttrain.trainer import PostTrainer

_UNDECIDED = "rewards/undecided_per_generation"


class Observer:
    """Counts and shows the completions of a run.

    Args:
        config: of the run.
        rewards: of the run.
        tokenizer: of the policy.

    Attributes:
        last_completions: the table that was written last; None before the first, and without --log_completions.
    """

    def __init__(self, config: PolicyConfig, rewards: Rewards, tokenizer: PreTrainedTokenizerBase):
        self.config, self.rewards, self.tokenizer = config, rewards, tokenizer
        self.last_completions: pa.Table | None = None
        self._trouble = np.zeros(3, dtype=np.int64)

    def generation(
        self,
        trainer: PostTrainer,
        rows: Dataset,
        rollouts: list[Rollout],
        advantages: np.ndarray,
        metrics: dict[str, float],
    ) -> None:
        """Takes note of a generation to train on.

        Args:
            trainer: whose log line it goes to.
            rows: the prompts' data set.
            rollouts: C completions.
            advantages: (C,).
            metrics: of the generation.
        """
        trainer.count(as_loss(metrics, trainer.args.device))
        if self.config.log_completions and trainer.is_world_process_zero():
            names, config, step = self.rewards.names, self.config, trainer.state.global_step + 1
            table = completions_table(step, rollouts, advantages, names, rows, self.tokenizer)
            folder = Path(trainer.args.output_dir) / "completions"
            self.last_completions = write_completions(table, self.last_completions, folder)
            number = SHOWN if config.num_completions_to_print is None else config.num_completions_to_print
            show_completions(table, names, number, config.log_unique_prompts)

    def evaluation(self, trainer: PostTrainer, number: int) -> Observe:
        """What takes note of an evaluation, batch by batch, each time that it is gone through.

        Args:
            trainer: whose metrics they become.
            number: completions of a whole evaluation.
        """
        return functools.partial(self._of_evaluation, trainer, number, [])

    def _of_evaluation(
        self,
        trainer: PostTrainer,
        number: int,
        seen: list[Rollout],
        rollouts: list[Rollout],
        advantages: np.ndarray,
        metrics: dict[str, float],
    ) -> None:
        """Of completions and rewards, the figures of the whole evaluation, however it was cut into batches; of the
        others the mean over completions."""
        described = self._described(rollouts)
        others = {name: value for name, value in metrics.items() if name not in described}
        trainer.count(as_loss(others, trainer.args.device, len(rollouts)))
        seen += rollouts
        if len(seen) == number:
            trainer.count(as_loss(self._described(seen), trainer.args.device))
            seen.clear()

    def _described(self, rollouts: list[Rollout]) -> dict[str, float]:
        rewards = torch.from_numpy(np.stack([rollout.rewards for rollout in rollouts]))
        statistics = reward_statistics(rewards, self.config.reward_weights)
        return length_metrics(rollouts) | statistics.metrics(self.rewards.names)

    def trouble(self) -> dict[str, float]:
        """How often rewards failed since the last generation, cut texts short, and gave an answer up, over all
        processes."""
        now = np.array([self.rewards.num_failures, self.rewards.num_truncated, self.rewards.num_undecided])
        new, self._trouble = now - self._trouble, now
        failures, truncated, undecided = np.sum(gather_object([new]), axis=0).tolist()
        return {
            "rewards/failures_per_generation": float(failures),
            "rewards/truncated_per_generation": float(truncated),
            _UNDECIDED: float(undecided),
        }

    def go_on(self) -> None:
        """The failures that the rewards have been told of by a checkpoint stand in earlier lines."""
        self._trouble[0] = self.rewards.num_failures


def without_rare(values: dict[str, float]) -> dict[str, float]:
    """Metrics of a line but for what is nothing where no mathematics is graded. It is counted on every rank, so that
    all know the same names.

    Args:
        values: by name, over all ranks.
    """
    return {name: value for name, value in values.items() if name != _UNDECIDED or value}
