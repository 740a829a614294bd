"""The embedded task: the stage `prepare`.

    python scripts/prepare.py [--params params.yaml]

Makes data/embedded/{sft,preference,prompts}/{train,validation,test}.jsonl and models/base from the section `prepare`,
the same bytes on every machine.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from posttrain.config.fields import flag
from posttrain.errors import UserError, report_mistakes
from posttrain.experiment.settings import read_settings, split_words

REQUIRED = dataclasses.MISSING


@dataclass(kw_only=True)
class PrepareSettings:
    """The section `prepare` of params.yaml."""

    seed: int = flag(REQUIRED, "Where every problem, slip and weight comes from.", low=0)
    num_sft: int = flag(REQUIRED, "Training problems with solutions.", low=1)
    terse_share: float = flag(REQUIRED, "Share of terse ones among those about half of the items.", low=0, high=1)
    num_preference: int = flag(REQUIRED, "Training pairs.", low=1)
    num_prompts: int = flag(REQUIRED, "Training prompts.", low=1)
    num_validation: int = flag(REQUIRED, "Validation problems of each set.", low=1)
    num_test: int = flag(REQUIRED, "Test problems of each set.", low=1)
    vocab_size: int = flag(REQUIRED, "Tokens at most.", low=259)
    hidden_size: int = flag(REQUIRED, "Width of the model.", low=8)
    intermediate_size: int = flag(REQUIRED, "Width of its feed-forward layers.", low=8)
    num_hidden_layers: int = flag(REQUIRED, "Layers.", low=1)
    num_attention_heads: int = flag(REQUIRED, "Attention heads.", low=1)
    num_key_value_heads: int = flag(REQUIRED, "Key-value heads.", low=1)


def main() -> int:
    # Load the section: a typo ends here.
    alone, path = split_words(sys.argv[1:], "scripts/prepare.py [--params FILE]")
    if alone:
        raise UserError(f"{alone[0]!r} stands alone; usage: scripts/prepare.py [--params FILE]")
    settings = read_settings(PrepareSettings, "prepare", path)
    from posttrain.embedded import task

    # Draw the problems, each once, and check that no two files share one.
    train = {"sft": settings.num_sft, "preference": settings.num_preference, "prompts": settings.num_prompts}
    sizes = {(name, "train"): number for name, number in train.items()}
    sizes |= {(name, "validation"): settings.num_validation for name in train}
    sizes |= {(name, "test"): settings.num_test for name in train}
    problems = task.draw_sets(settings.seed, sizes)
    task.check_disjoint(problems)

    # Write them, and the model that will learn them.
    task.write_data(problems, settings.seed, settings.terse_share, Path("data/embedded"))
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    num_parameters = task.write_base_model(
        task.tokenizer_texts(problems["sft", "train"]),
        settings.vocab_size,
        {name: getattr(settings, name) for name in names},
        settings.seed,
        Path("models/base"),
    )

    metrics = {**task.describe(problems), "num_parameters": num_parameters}
    Path("metrics").mkdir(exist_ok=True)
    Path("metrics/prepare.json").write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(report_mistakes(main))
