"""Rewards: functions, models and judges that say how good a completion is.

Nothing here imports torch until a reward model is loaded.
"""

from posttrain.rollout.rewards.batch import RewardBatch
from posttrain.rollout.rewards.check import check_columns, check_rewards, required_columns
from posttrain.rollout.rewards.table import Pending, Rewards, build_rewards

__all__ = [
    "Pending",
    "RewardBatch",
    "Rewards",
    "build_rewards",
    "check_columns",
    "check_rewards",
    "required_columns",
]
