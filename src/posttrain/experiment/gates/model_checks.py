"""All that is measured of evaluated models: the reward model, and each policy against the reference."""

from collections.abc import Mapping
from typing import Any

from posttrain.errors import UserError
from posttrain.experiment.gates.correlations import Bin
from posttrain.experiment.gates.limits import Check
from posttrain.experiment.gates.model_settings import ModelSettings
from posttrain.experiment.gates.policy_checks import check_policy
from posttrain.experiment.gates.reward_checks import check_answers, check_held_out

Result = dict[str, Any]


def check_models(
    results: Mapping[str, Mapping[str, Result]], reward_metrics: Mapping[str, float] | None, settings: ModelSettings
) -> tuple[list[Check], dict[str, float], list[Bin]]:
    """Measure everything.

    Args:
        results: of each model, its results on the problems by id.
        reward_metrics: of the reward model's training; None where there is none.
        settings: the models and the thresholds; a check without thresholds is left out.

    Returns:
        the checks, further metrics, and the reliability of the reward model on the models' answers.

    Raises:
        UserError: the models were not evaluated on the same problems.
    """
    reference = results[settings.reference]
    for name, theirs in results.items():
        if list(theirs) != list(reference):
            raise UserError(
                f"results/evaluate_{name}.jsonl is of other problems than that of {settings.reference}; "
                "run `make pipeline`"
            )
    rows = {name: list(theirs.values()) for name, theirs in results.items()}
    checks = [] if reward_metrics is None else check_held_out(reward_metrics, settings)
    metrics: dict[str, float] = {}
    bins: list[Bin] = []
    if all("reward_score" in row for of_model in rows.values() for row in of_model):
        found, metrics, bins = check_answers(rows, settings)
        checks += found
    for name, own in rows.items():
        found, further = check_policy(name, own, rows[settings.reference], settings)
        checks += found
        metrics |= further
    return checks, metrics, bins
