# ruff: noqa: RUF009 (flag() returns a dataclass field)
"""What models are held against when they have been evaluated: the section `check_models` of params.yaml."""

import dataclasses
from dataclasses import dataclass

from posttrain.config.fields import flag
from posttrain.experiment.gates.limits import Thresholds

REQUIRED = dataclasses.MISSING


@dataclass(kw_only=True)
class ModelSettings:
    """The section `check_models` of params.yaml: of each threshold, the values beyond which it warns and fails."""

    models: list[str] = flag(REQUIRED, "Names of the evaluated models, the reference among them.")
    reference: str = flag(REQUIRED, "Name of the model that the others were trained from.")
    reward_metrics: str | None = flag(REQUIRED, "Metrics file of the reward model's training; none: there is none.")
    min_reward_accuracy: Thresholds | None = flag(
        REQUIRED, "Share of held-out pairs that the reward model ranks right."
    )
    max_calibration_error: Thresholds | None = flag(REQUIRED, "Calibration error of the reward model, held-out pairs.")
    max_brier_score: Thresholds | None = flag(REQUIRED, "Brier score of the reward model on held-out pairs.")
    min_answer_accuracy: Thresholds | None = flag(
        REQUIRED, "Share of pairs of a right and a wrong answer of the models that the reward model ranks right."
    )
    max_answer_calibration_error: Thresholds | None = flag(REQUIRED, "Its calibration error on those pairs.")
    min_auc: Thresholds | None = flag(REQUIRED, "Chance that a model's right answer outscores a wrong one of its own.")
    max_auc_loss: Thresholds | None = flag(REQUIRED, "By how much that is surely less than for the reference.")
    max_length_correlation: Thresholds | None = flag(
        REQUIRED, "By how much length goes with reward more, or less, than with being right (Spearman's)."
    )
    max_hacking_loss: Thresholds | None = flag(
        REQUIRED, "By how much exact match surely fell where the reward surely rose."
    )
    max_length_growth: Thresholds | None = flag(REQUIRED, "Mean tokens of an answer over the reference's.")
    max_kl: Thresholds | None = flag(REQUIRED, "Divergence from the reference, nats a completion.")
    max_pass_loss: Thresholds | None = flag(REQUIRED, "By how much pass@k, k all samples, surely fell.")
    min_distinct: Thresholds | None = flag(REQUIRED, "Different greedy answers over the reference's.")
