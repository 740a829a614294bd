"""What is wrong with the data, before anything trains on them: the stage `check_data`.

    python scripts/check_data.py [--params params.yaml]

Reads the sets that the section `check_data` names and writes metrics/check_data.json and results/check_data.jsonl, a
line a row that was found. Then it ends with exit code 1 where a check failed, and otherwise writes
results/checks/data_passed, which every stage that trains depends on. Those bytes are always the same: another
threshold, or an edit of this check, runs the check again and trains nothing anew.
"""

import json
import sys
from pathlib import Path

# The code beside this script, not an installed one: in the copies that DVC makes of a commit, that of the commit.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from posttrain.errors import UserError, report_mistakes
from posttrain.experiment.gates.data_settings import DataSettings
from posttrain.experiment.gates.limits import check_thresholds, metrics_of, report, stop_on_failure, write_offenders
from posttrain.experiment.settings import read_settings, split_words

USAGE = "scripts/check_data.py [--params FILE]"
METRICS, OFFENDERS, PASSED = (
    Path("metrics/check_data.json"),
    Path("results/check_data.jsonl"),
    Path("results/checks/data_passed"),
)


def main() -> int:
    # Load the section: a typo ends here.
    alone, path = split_words(sys.argv[1:], USAGE)
    if alone:
        raise UserError(f"{alone[0]!r} stands alone; usage: {USAGE}")
    settings, where = read_settings(DataSettings, "check_data", path), f"{path}: check_data"
    check_thresholds(settings, where)
    from posttrain.experiment.gates.data_checks import check_data
    from posttrain.experiment.gates.parts import read_parts

    # Measure everything, and write all of it down before anything stops.
    PASSED.unlink(missing_ok=True)
    train = read_parts(settings.sets, [settings.train], f"{where}.sets")
    held_out = read_parts(settings.sets, settings.held_out, f"{where}.sets")
    checks, metrics = check_data(train, held_out, settings)
    for file in (METRICS, PASSED):
        file.parent.mkdir(parents=True, exist_ok=True)
    METRICS.write_text(json.dumps(metrics | metrics_of(checks), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_offenders(checks, OFFENDERS)

    print(report(checks, where))
    stop_on_failure(checks, "the data", where, str(OFFENDERS), "gates.md#data")
    PASSED.write_text("No check of the data failed.\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(report_mistakes(main))
