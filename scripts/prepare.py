"""Rows and base model: the stage `prepare`.

    python scripts/prepare.py [--params params.yaml]

Makes FOLDER/{sft,preference,prompts}/{train,validation,test}.jsonl, FOLDER/sources.json and models/base from the
section `prepare`: with `task: embedded` from its seed, the same bytes on every machine; with `task: own` from files or
the hub.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path

# The code beside this script, not an installed one: in the copies that DVC makes of a commit, that of the commit.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from posttrain.config.fields import flag
from posttrain.errors import UserError, report_mistakes
from posttrain.experiment.params import read_section
from posttrain.experiment.settings import read_settings, split_words

REQUIRED = dataclasses.MISSING


@dataclass(kw_only=True)
class EmbeddedSettings:
    """The section `prepare` of params.yaml with `task: embedded`."""

    task: str = flag(REQUIRED, "Where the rows come from.", choices=("embedded",))
    folder: str = flag(REQUIRED, "Where the rows go, a folder a set.")
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
    kind = read_section(path, "prepare").get("task")
    if kind not in ("embedded", "own"):
        raise UserError(f"{path}: prepare.task is {kind!r}; wanted embedded, or own for rows from files or the hub")
    metrics = make_embedded(path) if kind == "embedded" else make_own(path)
    Path("metrics").mkdir(exist_ok=True)
    Path("metrics/prepare.json").write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return 0


def make_embedded(path: str) -> dict[str, int]:
    """Make the embedded task; returns the metrics."""
    settings = read_settings(EmbeddedSettings, "prepare", path)
    from posttrain.embedded import task

    # Draw the problems, each once, and check that no two files share one.
    train = {"sft": settings.num_sft, "preference": settings.num_preference, "prompts": settings.num_prompts}
    sizes = {(name, "train"): number for name, number in train.items()}
    sizes |= {(name, "validation"): settings.num_validation for name in train}
    sizes |= {(name, "test"): settings.num_test for name in train}
    problems = task.draw_sets(settings.seed, sizes)
    task.check_disjoint(problems)

    # Write them, and the model that will learn them.
    folder = Path(settings.folder)
    task.write_data(problems, settings.seed, settings.terse_share, folder)
    sources = {"task": "embedded", "seed": settings.seed}
    (folder / "sources.json").write_text(json.dumps(sources, indent=2) + "\n", encoding="utf-8")
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    num_parameters = task.write_base_model(
        task.tokenizer_texts(problems["sft", "train"]),
        settings.vocab_size,
        {name: getattr(settings, name) for name in names},
        settings.seed,
        Path("models/base"),
    )
    return {**task.describe(problems), "num_parameters": num_parameters}


def make_own(path: str) -> dict[str, int]:
    """Fetch, convert and write the rows and the base model of a recipe; returns the metrics."""
    from posttrain.experiment import own_task

    where = f"{path}: prepare"
    settings, sets = own_task.read_own(read_section(path, "prepare"), where)
    folder = Path(settings.folder)
    # What is asked of the hub comes first: a name that is wrong ends here.
    own_task.write_sources(settings, sets, folder / "sources.json")
    counts = own_task.write_sets(sets, where, folder)
    num_parameters = own_task.write_base(settings, folder, Path("models/base"))
    return {**counts, "num_parameters": num_parameters}


if __name__ == "__main__":
    sys.exit(report_mistakes(main))
