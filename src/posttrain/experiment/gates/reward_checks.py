"""Whether the reward model can be believed: on held-out pairs, and on what the models themselves have written."""

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.errors import UserError
from posttrain.experiment.gates.correlations import Bin, calibration_error, reliability
from posttrain.experiment.gates.limits import Check, Offender
from posttrain.experiment.gates.model_settings import ModelSettings

Result = dict[str, Any]


def check_held_out(metrics: Mapping[str, float], settings: ModelSettings) -> list[Check]:
    """The reward model's own metrics on the held-out pairs of its training.

    Args:
        metrics: with eval_accuracy, eval_calibration_error and eval_brier_score (docs/reward.md).
        settings: the thresholds.

    Raises:
        UserError: it was trained without evaluation.
    """
    missing = [name for name in ("accuracy", "calibration_error", "brier_score") if f"eval_{name}" not in metrics]
    if missing:
        raise UserError(
            f"{settings.reward_metrics}: there is no eval_{missing[0]}; set reward.eval_strategy to steps or epoch, or "
            "check_models.reward_metrics to null"
        )
    better_pairs = "train it longer, on more or cleaner pairs; a policy finds every fault of what rewards it"
    softer = "train it for fewer steps, or with more regularisation: it is surer than it is right"
    measured = (
        ("min_reward_accuracy", "accuracy", "share of the held-out pairs that it ranks right", better_pairs),
        ("max_calibration_error", "calibration_error", "mean gap between how sure it is and how often right", softer),
        ("max_brier_score", "brier_score", "mean square of one minus the probability of the right label", softer),
    )
    checks = []
    for key, name, meaning, way_out in measured:
        thresholds = getattr(settings, key)
        if thresholds is not None:
            value = metrics[f"eval_{name}"]
            checks.append(Check(f"reward_model/{name}", value, key, thresholds, meaning, way_out))
    return checks


def check_answers(
    results: Mapping[str, Sequence[Result]], settings: ModelSettings
) -> tuple[list[Check], dict[str, float], list[Bin]]:
    """The reward model on pairs of a right and a wrong answer to one problem, written by any two of the models.

    Its training pairs may differ in other ways than what a policy writes; here it is asked about the latter.

    Args:
        results: of each model, of the same problems in the same order, with `reward_score` and `correct`.
        settings: the thresholds.

    Returns:
        the checks, further metrics, and the bins of the reliability diagram; nothing where there are no such pairs.
    """
    margins: list[float] = []
    wrong: list[tuple[float, Offender]] = []
    names = list(results)
    for number, rows in enumerate(zip(*results.values(), strict=True), start=1):
        right = [row["reward_score"] for row in rows if row["correct"]]
        for name, row in zip(names, rows, strict=True):
            if not row["correct"] and right:
                of_row = [score - row["reward_score"] for score in right]
                margins += of_row
                place = f"results/evaluate_{name}.jsonl line {number}"
                why = f"wrong, and scored {-min(of_row):.2f} above a right answer to the same problem"
                wrong.append((min(of_row), Offender(place, row["completion"], why)))
    if not margins:
        return [], {}, []
    bins = reliability(margins)
    accuracy = sum(margin > 0 for margin in margins) / len(margins)
    worst = [offender for margin, offender in sorted(wrong, key=lambda each: each[0]) if margin <= 0]
    way_out = "make pairs of what the policies write, and train the reward model on those too (arXiv 2203.02155, 3.1)"
    checks = []
    if settings.min_answer_accuracy is not None:
        meaning = "share of the pairs of a right and a wrong answer of the models that the reward model ranks right"
        key, limits = "min_answer_accuracy", settings.min_answer_accuracy
        checks.append(Check("reward_model/answer_accuracy", accuracy, key, limits, meaning, way_out, worst))
    if settings.max_answer_calibration_error is not None:
        meaning = "mean gap between how sure it is of such a pair and how often it is right"
        key, limits = "max_answer_calibration_error", settings.max_answer_calibration_error
        value = calibration_error(bins)
        checks.append(Check("reward_model/answer_calibration_error", value, key, limits, meaning, way_out))
    return checks, {"reward_model/num_answer_pairs": len(margins)}, bins
