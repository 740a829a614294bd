"""What is known of metrics: which way is better, and which ones a person looks at first."""

import re

BETTER_HIGHER = re.compile(
    r"exact_match|format_rate|eos_rate|pass_at_\d+|reward_score|preference_accuracy_\w+"
    r"|(eval_)?(accuracy|mean_token_accuracy|rewards/accuracies|rewards/accuracy_reward/mean)|eval_reward|reward"
    r"|tokens_per_second"
)
BETTER_LOWER = re.compile(
    r"(eval_|train_)?loss|(eval_)?(brier_score|calibration_error)|step_time|train_runtime|peak_memory_mib"
)
SPEED = ("tokens_per_second", "step_time", "train_runtime", "peak_memory_mib")
# Of a stage that trains, what was measured on held-out rows, once a metric; the others are behind --all.
_CHIEF = re.compile(
    r"eval_(loss|mean_token_accuracy|accuracy|calibration_error|brier_score|reward|kl|rewards/(accuracies|margins))|train_loss"
)
# A policy method's loss is near 0 whatever the policy is worth, and DPO's is another one with each beta.
_LOSS_SAYS_NOTHING = ("grpo", "rloo")
_LOSS_OF_ITS_SETTINGS = ("dpo", *_LOSS_SAYS_NOTHING)


def direction(stage: str, metric: str) -> int:
    """1 where more is better, -1 where less is, 0 where that depends on what one wants."""
    if stage in _LOSS_OF_ITS_SETTINGS and metric.endswith("loss"):
        return 0
    return 1 if BETTER_HIGHER.fullmatch(metric) else -1 if BETTER_LOWER.fullmatch(metric) else 0


def is_chief(stage: str, metric: str) -> bool:
    """Whether a metric is shown without --all."""
    if stage.startswith("evaluate_"):
        return not metric.startswith("num_")
    return bool(_CHIEF.fullmatch(metric)) and not (stage in _LOSS_SAYS_NOTHING and metric.endswith("loss"))
