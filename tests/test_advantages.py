"""Advantages of GRPO and RLOO, by hand. NaN is a reward function without an opinion."""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.losses.advantages import (
    Advantages,
    group_advantages,
    leave_one_out_advantages,
    weighted_rewards,
    zero_variance_groups,
)

NAN = math.nan
E = 1e-4


def column(*rewards: float) -> torch.Tensor:
    """One reward function: (C, 1)."""
    return torch.tensor(rewards)[:, None]


def values(advantages: Advantages) -> list[float]:
    return advantages.values.tolist()


def close(*expected: float) -> object:
    return pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_weighted_rewards() -> None:
    """1 · 2 + 3 · 0.5; an opinion that is missing is left out; two of them leave nothing."""
    rewards = torch.tensor([[1.0, 3.0], [1.0, NAN], [NAN, NAN], [NAN, 3.0]])
    assert weighted_rewards(rewards, [2.0, 0.5]).tolist() == pytest.approx([3.5, 2.0, NAN, 1.5], nan_ok=True)
    assert weighted_rewards(rewards, None).tolist() == pytest.approx([4.0, 1.0, NAN, 3.0], nan_ok=True)


def test_scale_rewards() -> None:
    """Groups (0, 2, 4) and (1, 1, 4), means 2 and 2, so -2, 0, 2 and -1, -1, 2. Their variances, with Bessel's
    correction, are 8/2 = 4 and 6/2 = 3; that of all six, with the mean 2, is 14/5."""
    rewards = column(0.0, 2.0, 4.0, 1.0, 1.0, 4.0)
    centred = [-2.0, 0.0, 2.0, -1.0, -1.0, 2.0]
    assert values(group_advantages(rewards, 3, scale_rewards="none")) == close(*centred)
    first, second, both = 2 + E, math.sqrt(3) + E, math.sqrt(14 / 5) + E
    of_group = [x / (first if i < 3 else second) for i, x in enumerate(centred)]
    assert values(group_advantages(rewards, 3)) == close(*of_group)
    assert values(group_advantages(rewards, 3, scale_rewards="batch")) == close(*(x / both for x in centred))


def test_a_completion_without_any_opinion() -> None:
    """It gets 0 and takes no part: of (0, NaN, 2) the mean is 1 and the standard deviation √2."""
    actual = group_advantages(column(0.0, NAN, 2.0), 3)
    assert values(actual) == close(-1 / (math.sqrt(2) + E), 0.0, 1 / (math.sqrt(2) + E))
    assert actual.rewards.tolist() == pytest.approx([0.0, NAN, 2.0], nan_ok=True)
    # One alone has nothing to be compared with.
    for scale in ("group", "none"):
        assert values(group_advantages(column(NAN, 5.0, NAN, 0.0, 0.0, 0.0), 3, scale_rewards=scale)) == [0.0] * 6
    assert values(group_advantages(column(NAN, NAN), 2, scale_rewards="batch")) == [0.0, 0.0]


def test_normalize_then_sum() -> None:
    """One prompt, two functions: (0, 2) and (0, 10) are ±1/√2 each, up to the constant under the fraction line, so
    that a weight of 1 and one of 3 give ±4/√2, and whitened ±1/√2 again. Summed first, the second one rules."""
    rewards = torch.tensor([[0.0, 10.0], [2.0, 0.0]])
    actual = group_advantages(rewards, 2, [1.0, 3.0], multi_objective_aggregation="normalize_then_sum")
    z1, z2 = 1 / (math.sqrt(2) + E), 5 / (math.sqrt(50) + E)
    total = 3 * z2 - z1
    assert values(actual) == close(total / (math.sqrt(2) * total + E), -total / (math.sqrt(2) * total + E))
    # Over two prompts whitening is the batch's: the totals are ±z1 and ±2 z1 (equal weights, the second function
    # without an opinion on the first prompt), whose variance is (2 · 1 + 2 · 4) z1² / 3.
    rewards = torch.tensor([[0.0, NAN], [2.0, NAN], [0.0, 0.0], [2.0, 2.0]])
    actual = group_advantages(rewards, 2, multi_objective_aggregation="normalize_then_sum")
    scale = math.sqrt(10 / 3) * z1 + E
    assert values(actual) == close(-z1 / scale, z1 / scale, -2 * z1 / scale, 2 * z1 / scale)
    # A completion without any opinion is not among those whose variance, 2 z1², is taken.
    actual = group_advantages(column(0.0, 2.0, NAN), 3, multi_objective_aggregation="normalize_then_sum")
    assert values(actual) == close(-z1 / (math.sqrt(2) * z1 + E), z1 / (math.sqrt(2) * z1 + E), 0.0)


def test_leave_one_out() -> None:
    """1, 2, 6: the others' means are 4, 3.5 and 1.5. With a missing one, of 1 and 6 each is the other's baseline."""
    assert values(leave_one_out_advantages(column(1.0, 2.0, 6.0), 3)) == close(-3.0, -1.5, 4.5)
    assert values(leave_one_out_advantages(column(1.0, NAN, 6.0), 3)) == close(-5.0, 0.0, 5.0)
    assert values(leave_one_out_advantages(column(NAN, 3.0, NAN), 3)) == [0.0, 0.0, 0.0]


def test_leave_one_out_clips_the_reward_and_then_takes_the_kl_from_it() -> None:
    """Clipped to 0…2: (1, 2, 2); minus 0.5 · (2, 0, -4): (0, 2, 4); the others' means are 3, 2 and 1."""
    kl = torch.tensor([2.0, 0.0, -4.0])
    actual = leave_one_out_advantages(column(1.0, 2.0, 6.0), 3, kl, beta=0.5, reward_clip_range=(0.0, 2.0))
    assert values(actual) == close(-3.0, 0.0, 3.0)
    assert actual.rewards.tolist() == [1.0, 2.0, 6.0]
    assert actual.statistics.reward == 3.0  # as given, neither clipped nor penalised
    assert actual.statistics.frac_reward_zero_std == 0.0
    clipped = leave_one_out_advantages(column(2.0, 3.0), 2, reward_clip_range=(0.0, 2.0))
    assert clipped.statistics.frac_reward_zero_std == 1.0


def test_leave_one_out_normalised() -> None:
    """-3, -1.5, 4.5 have the mean 0 and the variance 31.5/2; a completion without a reward takes no part."""
    scale = math.sqrt(31.5 / 2) + E
    actual = leave_one_out_advantages(column(1.0, 2.0, 6.0, NAN, NAN, NAN), 3, normalize_advantages=True)
    assert values(actual) == close(-3 / scale, -1.5 / scale, 4.5 / scale, 0.0, 0.0, 0.0)


def test_zero_variance_groups() -> None:
    """Equal rewards, different ones, one alone, two equal ones beside a missing one."""
    rewards = column(1.0, 1.0, 1.0, 1.0, 1.0, 2.0, NAN, NAN, 2.0, 3.0, NAN, 3.0)
    assert zero_variance_groups(rewards, 3).tolist() == [True, False, True, True]
    statistics = group_advantages(rewards, 3, scale_rewards="batch").statistics
    assert statistics.frac_reward_zero_std == 0.75
    # The mean of six times 5.3 in float32 is another number.
    assert zero_variance_groups(column(*[5.3] * 6), 6).tolist() == [True]


def test_zero_variance_of_sums_and_of_each_function() -> None:
    """(1, 0) and (0, 1) have the same sum; scaled one by one, they differ, unless only one of them weighs."""
    rewards = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 7.0], [1.0, 8.0]])
    assert zero_variance_groups(rewards, 2).tolist() == [True, False]
    assert zero_variance_groups(rewards, 2, None, "normalize_then_sum").tolist() == [False, False]
    assert zero_variance_groups(rewards, 2, [1.0, 0.0], "normalize_then_sum").tolist() == [False, True]


def test_statistics_and_their_names() -> None:
    """Sums 4, 1, 3 (one missing): mean 8/3, variance 14/9 · 3/2; the first function 1, 1, the second 3, 3, the third
    has no opinion at all."""
    rewards = torch.tensor([[1.0, 3.0, NAN], [1.0, NAN, NAN], [NAN, NAN, NAN], [NAN, 3.0, NAN]])
    metrics = group_advantages(rewards, 2).statistics.metrics(["accuracy", "format", "silent"])
    assert metrics == {
        "reward": pytest.approx(8 / 3),
        "reward_std": pytest.approx(math.sqrt(14 / 6)),
        "frac_reward_zero_std": 0.5,
        "rewards/accuracy/mean": 1.0,
        "rewards/accuracy/std": 0.0,
        "rewards/format/mean": 3.0,
        "rewards/format/std": 0.0,
    }


def test_one_completion_a_prompt_as_in_evaluation() -> None:
    rewards = column(1.0, 3.0)
    for actual in (group_advantages(rewards, 1), leave_one_out_advantages(rewards, 1)):
        assert values(actual) == [0.0, 0.0]
        assert (actual.statistics.reward, actual.statistics.frac_reward_zero_std) == (2.0, 1.0)
