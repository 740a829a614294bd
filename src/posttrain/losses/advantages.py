"""From rewards to advantages: how much better a completion was than others of its prompt.

Rewards are (C, R) float, of R reward functions, NaN where a function has no opinion; the G completions of a prompt
stand side by side. All functions see the whole generation batch, of all ranks. A completion of which no function has an
opinion takes no part in any mean, and its advantage is 0; so is one that nothing can be compared with.

Where it departs from TRL: sums are in float64, so that equal rewards have a standard deviation of 0 and not of their
rounding; frac_reward_zero_std is always the share of prompts (there, with scale_rewards "batch" and with
normalize_then_sum, 1 or 0 for the batch), and a prompt with fewer than two scored completions is among them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

# Added to standard deviations before dividing by them, as TRL does.
_EPSILON = 1e-4
# Standard deviations up to this are rounding.
_NO_DEVIATION = 1e-8


@dataclass(frozen=True)
class RewardStatistics:
    """What is logged of a generation batch; NaN = nothing to tell. Standard deviations are with Bessel's correction.

    Args:
        reward: mean of the weighted sums of the rewards, before clipping and KL.
        reward_std: their standard deviation.
        frac_reward_zero_std: share of prompts whose completions all have the same reward.
        means: mean of each reward function, where it has an opinion; R.
        stds: the standard deviations of these.
    """

    reward: float
    reward_std: float
    frac_reward_zero_std: float
    means: tuple[float, ...]
    stds: tuple[float, ...]

    def metrics(self, names: Sequence[str]) -> dict[str, float]:
        """By the names they are logged under, those left out that are NaN.

        Args:
            names: of the R reward functions.
        """
        values = {"reward": self.reward, "reward_std": self.reward_std}
        values["frac_reward_zero_std"] = self.frac_reward_zero_std
        for name, mean, std in zip(names, self.means, self.stds, strict=True):
            values |= {f"rewards/{name}/mean": mean, f"rewards/{name}/std": std}
        return {name: value for name, value in values.items() if not math.isnan(value)}


@dataclass(frozen=True)
class Advantages:
    """Of one generation batch.

    Args:
        values: (C,) float32.
        rewards: (C,) float32 weighted sums of the rewards, NaN where no function has an opinion.
        statistics: what is logged.
    """

    values: torch.Tensor
    rewards: torch.Tensor
    statistics: RewardStatistics


def weighted_rewards(rewards: torch.Tensor, reward_weights: Sequence[float] | None) -> torch.Tensor:
    """Sum over reward functions, each times its weight, of those that have an opinion; NaN where none has.

    Args:
        rewards: (C, R).
        reward_weights: R; None = 1 each.

    Returns:
        (C,) float64.
    """
    rewards = rewards.double()
    total = (rewards * _weights(rewards, reward_weights)).nansum(dim=1)
    return total.masked_fill(rewards.isnan().all(dim=1), math.nan)


def _weights(rewards: torch.Tensor, reward_weights: Sequence[float] | None) -> torch.Tensor:
    values = [1.0] * rewards.shape[-1] if reward_weights is None else list(reward_weights)
    assert len(values) == rewards.shape[-1]
    return torch.tensor(values, dtype=rewards.dtype, device=rewards.device)


def _nanstd(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Standard deviation of what is not NaN, with Bessel's correction; NaN for fewer than two. Keeps the dimension."""
    count = (~values.isnan()).sum(dim, keepdim=True)
    squares = (values - values.nanmean(dim, keepdim=True)).square().nansum(dim, keepdim=True)
    return torch.where(count > 1, squares / (count - 1), math.nan).sqrt()


def _zero_deviation(groups: torch.Tensor, dim: int) -> torch.Tensor:
    """Whether what is not NaN is all the same, or fewer than two; drops the dimension."""
    return (_nanstd(groups, dim).nan_to_num(nan=0.0) <= _NO_DEVIATION).squeeze(dim)


def zero_variance_groups(
    rewards: torch.Tensor,
    num_generations: int,
    reward_weights: Sequence[float] | None = None,
    multi_objective_aggregation: str = "sum_then_normalize",
) -> torch.Tensor:
    """Prompts that nothing can be learnt from, since all their advantages are 0: all their completions got the same, or
    fewer than two got a reward (the groups that DAPO's dynamic sampling replaces, arXiv 2503.14476, §3.2).

    Args:
        rewards: (C, R).
        num_generations: G.
        reward_weights: R; None = 1 each.
        multi_objective_aggregation: with "normalize_then_sum", each reward function is looked at by itself.

    Returns:
        (C / G,) bool.
    """
    if multi_objective_aggregation == "normalize_then_sum":
        weighted = rewards.double()
        weighted = weighted * _weights(weighted, reward_weights)
        return _zero_deviation(weighted.view(-1, num_generations, rewards.shape[1]), dim=1).all(dim=1)
    return _zero_deviation(weighted_rewards(rewards, reward_weights).view(-1, num_generations), dim=1)


def reward_statistics(rewards: torch.Tensor, reward_weights: Sequence[float] | None) -> RewardStatistics:
    """Of completions that need not be those of one generation, as those of a whole evaluation: without the share of
    prompts, which is for a method to tell.

    Args:
        rewards: (C, R), NaN = no opinion.
        reward_weights: R; None = 1 each.
    """
    return _statistics(rewards, weighted_rewards(rewards, reward_weights), torch.zeros(0))


def _statistics(rewards: torch.Tensor, combined: torch.Tensor, zero_variance: torch.Tensor) -> RewardStatistics:
    rewards = rewards.double()
    return RewardStatistics(
        reward=combined.nanmean().item(),
        reward_std=_nanstd(combined, 0).item(),
        frac_reward_zero_std=zero_variance.double().mean().item(),
        means=tuple(rewards.nanmean(0).tolist()),
        stds=tuple(_nanstd(rewards, 0)[0].tolist()),
    )


def group_advantages(
    rewards: torch.Tensor,
    num_generations: int,
    reward_weights: Sequence[float] | None = None,
    scale_rewards: str = "group",
    multi_objective_aggregation: str = "sum_then_normalize",
) -> Advantages:
    """GRPO: reward minus the mean of the prompt's completions, over a standard deviation (DeepSeekMath, arXiv
    2402.03300, §4.1.2).

    Args:
        rewards: (C, R).
        num_generations: G.
        reward_weights: R; None = 1 each.
        scale_rewards: whose standard deviation: "group" (the prompt's completions), "batch" (arXiv 2508.08221), or
            "none": not divided (Dr. GRPO, arXiv 2503.20783).
        multi_objective_aggregation: "sum_then_normalize", or "normalize_then_sum": each reward function is centred and
            scaled within the prompt, then they are summed with their weights, and the sums centred and scaled over the
            batch, whatever `scale_rewards` says (GDPO, arXiv 2601.05242).
    """
    combined = weighted_rewards(rewards, reward_weights)
    if multi_objective_aggregation == "normalize_then_sum":
        groups = rewards.double().view(-1, num_generations, rewards.shape[1])
        scaled = (groups - groups.nanmean(1, keepdim=True)) / (_nanstd(groups, 1) + _EPSILON)
        total = (scaled * _weights(scaled, reward_weights)).nansum(dim=2).view(-1)
        total = total.masked_fill(combined.isnan(), math.nan)
        values = (total - total.nanmean()) / (_nanstd(total, 0) + _EPSILON)
    else:
        assert multi_objective_aggregation == "sum_then_normalize", multi_objective_aggregation
        groups = combined.view(-1, num_generations)
        values = groups - groups.nanmean(1, keepdim=True)
        if scale_rewards == "group":
            values = values / (_nanstd(groups, 1) + _EPSILON)
        elif scale_rewards == "batch":
            values = values / (_nanstd(combined, 0) + _EPSILON)
        else:
            assert scale_rewards == "none", scale_rewards
        values = values.view(-1)
    no_variance = zero_variance_groups(rewards, num_generations, reward_weights, multi_objective_aggregation)
    return Advantages(values.nan_to_num(nan=0.0).float(), combined.float(), _statistics(rewards, combined, no_variance))


def leave_one_out_advantages(
    rewards: torch.Tensor,
    num_generations: int,
    kl: torch.Tensor | None = None,
    beta: float = 0.0,
    reward_weights: Sequence[float] | None = None,
    reward_clip_range: tuple[float, float] | None = None,
    normalize_advantages: bool = False,
) -> Advantages:
    """RLOO: reward minus the mean reward of the prompt's other completions (Ahmadian et al., Back to Basics, arXiv
    2402.14740).

    Args:
        rewards: (C, R).
        num_generations: G.
        kl: (C,) KL of each completion to the reference, summed over its tokens, in nats; beta times it is taken from
            the clipped reward. Needed where beta is not 0.
        beta: factor of the KL.
        reward_weights: R; None = 1 each.
        reward_clip_range: lowest and highest reward.
        normalize_advantages: to mean 0 and standard deviation 1 over the batch.
    """
    combined = weighted_rewards(rewards, reward_weights)
    penalised = combined if reward_clip_range is None else combined.clamp(*reward_clip_range)
    if beta:
        assert kl is not None
        penalised = penalised - beta * kl.double()
    groups = penalised.view(-1, num_generations)
    others = (~groups.isnan()).sum(1, keepdim=True) - 1
    baselines = (groups.nansum(1, keepdim=True) - groups) / others  # NaN where a completion stands alone
    values = (groups - baselines).view(-1)
    if normalize_advantages:
        values = (values - values.nanmean()) / (_nanstd(values, 0) + _EPSILON)
    no_variance = _zero_deviation(groups, dim=1)
    return Advantages(values.nan_to_num(nan=0.0).float(), combined.float(), _statistics(rewards, combined, no_variance))
