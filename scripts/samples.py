# ruff: noqa: RUF009 (flag() returns a dataclass field)
"""Answers of all models to the same problems, side by side: the stage `samples`.

    python scripts/samples.py [--params params.yaml]

Reads results/evaluate_MODEL.jsonl of each model and writes results/samples.md.
"""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

# The code beside this script, not an installed one: in the copies that DVC makes of a commit, that of the commit.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from posttrain.config.fields import flag
from posttrain.errors import UserError, report_mistakes
from posttrain.experiment.evaluation_samples import read_results, side_by_side
from posttrain.experiment.settings import read_settings, split_words

REQUIRED = dataclasses.MISSING
USAGE = "scripts/samples.py [--params FILE]"


@dataclass(kw_only=True)
class SamplesSettings:
    """The section `samples` of params.yaml."""

    models: list[str] = flag(REQUIRED, "Names of the models, in the order of the columns.")
    num_differing: int = flag(REQUIRED, "Problems that some solve and others do not.", low=0)
    num_agreeing: int = flag(REQUIRED, "Problems that all solve, or none.", low=0)


def main() -> int:
    alone, path = split_words(sys.argv[1:], USAGE)
    if alone:
        raise UserError(f"{alone[0]!r} stands alone; usage: {USAGE}")
    settings = read_settings(SamplesSettings, "samples", path)
    if not settings.models:
        raise UserError(f"{path}: samples.models is empty; name the models to show, such as [sft, dpo]")
    results = {name: read_results(name) for name in settings.models}
    page = side_by_side(results, settings.num_differing, settings.num_agreeing)
    Path("results/samples.md").write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(report_mistakes(main))
