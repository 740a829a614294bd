"""What is told of the completions of an evaluation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from posttrain.config import parse_command_line
from posttrain.counts import Counts
from posttrain.rollout.collect import Rollout
from posttrain.rollout.observer import Observer
from posttrain.rollout.rewards.table import Rewards


def rollout(row: int, length: int, reward: float) -> Rollout:
    ids = np.arange(length)
    return Rollout(row, ids, np.zeros(length, np.float32), True, np.array([reward], np.float32))


def test_each_pass_over_an_evaluation_is_told_of_as_a_whole() -> None:
    """Two batches of two completions: 1, 3, 5 and 7 tokens are 4 in the mean, and 7 at most; so are those of a second
    pass over the same loader, which has a share of its own in the mean of the line."""
    words = ["--model_name_or_path", "m", "--dataset_name", "d", "--reward_funcs", "accuracy_reward"]
    config: Any = parse_command_line("grpo", words)[0]
    counts, score = Counts(), SimpleNamespace(name="score")
    trainer: Any = SimpleNamespace(args=SimpleNamespace(device=torch.device("cpu")), count=counts.add)
    observe = Observer(config, Rewards([score], 0), None).evaluation(trainer, 4)  # type: ignore[list-item, arg-type]
    for passes in (1, 2):
        for lengths in ((1, 3), (5, 7)):
            rollouts = [rollout(row, length, reward=length / 2) for row, length in enumerate(lengths)]
            observe(rollouts, np.zeros(2), {"kl": float(lengths[0])})
        assert counts.weights["completions/mean_length"] == counts.weights["reward"] == passes
        told = {name: float(total) / float(counts.weights[name]) for name, total in counts.sums.items()}
        assert told["completions/mean_length"] == 4 and told["completions/max_length"] == 7
        assert told["reward"] == 2 and told["kl"] == 3  # the latter the mean over the batches' completions
