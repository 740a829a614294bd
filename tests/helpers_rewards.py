"""Configs and batches for the tests of rewards."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.config.policy import GRPOConfig
from posttrain.rollout.rewards.batch import RewardBatch
from posttrain.rollout.rewards.table import Rewards, build_rewards

MINE = str(Path(__file__).with_name("reward_functions.py"))


def config_of(*reward_funcs: str, **flags: Any) -> GRPOConfig:
    """The flags of a run with some rewards."""
    return GRPOConfig(reward_funcs=list(reward_funcs) or None, explicit=frozenset(flags), **flags)


def batch_of(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: list[Any]) -> RewardBatch:
    """A batch whose rows stand in data.jsonl, from line 1."""
    return RewardBatch(
        prompts=list(prompts or ["?"] * len(completions)),
        completions=list(completions),
        completion_ids=[list(range(len(str(completion)))) for completion in completions],
        columns=columns,
        places=[f"data.jsonl:{row + 1}" for row in range(len(completions))],
    )


def message(content: str, role: str = "assistant") -> list[dict[str, str]]:
    """A conversation of one message."""
    return [{"role": role, "content": content}]


@contextlib.contextmanager
def rewards_of(*reward_funcs: str, **flags: Any) -> Iterator[Rewards]:
    """The rewards of a run, closed afterwards."""
    rewards = build_rewards(config_of(*reward_funcs, **flags), "cpu")
    try:
        yield rewards
    finally:
        rewards.close()


def column(table: np.ndarray, number: int = 0) -> list[float | None]:
    """What one reward gave, None for no opinion."""
    return [None if np.isnan(value) else float(value) for value in table[:, number]]


def write_functions(folder: Path, text: str, name: str = "mine.py") -> str:
    """A file of reward functions; returns its path."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)
