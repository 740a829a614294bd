"""Whether the evaluated models have learnt the task or to please their reward: the stage `check_models`.

    python scripts/check_models.py [--params params.yaml]

Reads results/evaluate_MODEL.jsonl of each model that the section `check_models` names, and the reward model's metrics,
and writes metrics/check_models.json and results/check_models.jsonl: the bins of the reward model's reliability, then a
line an answer that was found. Then it ends with exit code 1 where a check failed.
"""

import json
import sys
from pathlib import Path

# The code beside this script, not an installed one: in the copies that DVC makes of a commit, that of the commit.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from posttrain.config.fields import suggestion
from posttrain.errors import UserError, report_mistakes
from posttrain.experiment.evaluation_samples import read_results
from posttrain.experiment.gates.limits import check_thresholds, metrics_of, report, stop_on_failure, write_offenders
from posttrain.experiment.gates.model_settings import ModelSettings
from posttrain.experiment.settings import read_settings, split_words

USAGE = "scripts/check_models.py [--params FILE]"
METRICS, OFFENDERS = Path("metrics/check_models.json"), Path("results/check_models.jsonl")


def main() -> int:
    # Load the section: a typo ends here.
    alone, path = split_words(sys.argv[1:], USAGE)
    if alone:
        raise UserError(f"{alone[0]!r} stands alone; usage: {USAGE}")
    settings, where = read_settings(ModelSettings, "check_models", path), f"{path}: check_models"
    check_thresholds(settings, where)
    if settings.reference not in settings.models:
        near = suggestion(settings.reference, settings.models)
        raise UserError(f"{where}.reference: {settings.reference} is not among {where}.models{near}")
    from posttrain.experiment.gates.model_checks import check_models

    # Measure everything, and write all of it down before anything stops.
    results = {name: read_results(name) for name in settings.models}
    checks, metrics, bins = check_models(results, read_metrics(settings.reward_metrics), settings)
    for file in (METRICS, OFFENDERS):
        file.parent.mkdir(exist_ok=True)
    METRICS.write_text(json.dumps(metrics | metrics_of(checks), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_offenders(checks, OFFENDERS, [{"reliability": each._asdict()} for each in bins])

    print(report(checks, where))
    stop_on_failure(checks, "the models", where, str(OFFENDERS), "gates.md#models")
    return 0


def read_metrics(path: str | None) -> dict[str, float] | None:
    """The metrics of the reward model's training; None where there is no reward model."""
    if path is None:
        return None
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; the stage reward writes it") from error


if __name__ == "__main__":
    sys.exit(report_mistakes(main))
