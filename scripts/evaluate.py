"""A model on the held-out problems: the stage `evaluate`.

    python scripts/evaluate.py MODEL-NAME [--params params.yaml]

Loads models/MODEL-NAME and writes metrics/evaluate_MODEL-NAME.json and, a line a problem and a line a pair, results/
evaluate_MODEL-NAME.jsonl.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.config.fields import flag, suggestion
from posttrain.errors import UserError, report_mistakes
from posttrain.experiment import evaluation
from posttrain.experiment.settings import read_settings, split_words

REQUIRED = dataclasses.MISSING
USAGE = "scripts/evaluate.py MODEL-NAME [--params FILE]"


@dataclass(kw_only=True)
class EvaluateSettings:
    """The section `evaluate` of params.yaml."""

    prompts: str = flag(REQUIRED, "File of held-out problems with `prompt` and `solution`.")
    pairs: str = flag(REQUIRED, "File of held-out pairs with `prompt`, `chosen` and `rejected`.")
    reference: str = flag(REQUIRED, "Name of the model that preferences are measured against.")
    max_new_tokens: int = flag(REQUIRED, "Where an answer without an end is cut off, in tokens.", low=1)
    batch_size: int = flag(REQUIRED, "Prompts, or answers to score, at a time.", low=1)
    num_threads: int = flag(REQUIRED, "Cores.", low=1)


def check_model(name: str) -> Path:
    """The folder of a model, if there is a whole model in it."""
    folder = Path("models") / name
    if not (folder / "config.json").is_file():
        known = sorted(path.parent.name for path in Path("models").glob("*/config.json"))
        found = f"models/ holds {', '.join(known)}" if known else "models/ holds none yet; `make train-dpo` trains them"
        raise UserError(f"{folder} is no model folder{suggestion(name, known)}; {found}")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder} holds no weights (*.safetensors); run the stage that writes it again")
    return folder


def main() -> int:
    # Read the arguments, the section and the held-out rows: a mistake ends here, before torch is imported.
    alone, path = split_words(sys.argv[1:], USAGE)
    if len(alone) != 1:
        raise UserError(f"wanted the name of one model, found {len(alone)}; usage: {USAGE}")
    name = alone[0]
    settings = read_settings(EvaluateSettings, "evaluate", path)
    folder = check_model(name)
    prompts = evaluation.read_problems(settings.prompts, ("prompt", "solution"))
    pairs = evaluation.read_problems(settings.pairs, ("prompt", "chosen", "rejected"))
    compare = name != settings.reference
    reference_folder = check_model(settings.reference) if compare else folder

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(settings.num_threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def load(folder: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(device)

    # Answer the problems, and grade the answers.
    model = load(folder)
    ids = [evaluation.prompt_ids(tokenizer, row["prompt"]) for row in prompts]
    answers = evaluation.generate_answers(model, tokenizer, ids, settings.max_new_tokens, settings.batch_size)
    results = evaluation.grade_answers(prompts, answers)
    metrics = evaluation.answer_metrics(results)

    # Score both answers of each pair, under the model and, for the implicit reward, under the reference.
    margins = evaluation.pair_margins(model, tokenizer, pairs, settings.batch_size, f"pairs, {name}")
    columns = {"margin_logprob": margins}
    metrics["preference_accuracy_logprob"] = evaluation.share_above_zero(margins)
    if compare:
        reference = load(reference_folder)
        theirs = evaluation.pair_margins(
            reference, tokenizer, pairs, settings.batch_size, f"pairs, {settings.reference}"
        )
        against = [margin - other for margin, other in zip(margins, theirs, strict=True)]
        columns[f"margin_vs_{settings.reference}"] = against
        metrics[f"preference_accuracy_vs_{settings.reference}"] = evaluation.share_above_zero(against)
    metrics["num_pairs"] = len(pairs)
    results += [
        {"id": f"preference/{number}", "prompt": pair["prompt"]}
        | {key: values[number] for key, values in columns.items()}
        for number, pair in enumerate(pairs)
    ]

    for folder_name in ("metrics", "results"):
        Path(folder_name).mkdir(exist_ok=True)
    text = json.dumps(metrics, indent=2, sort_keys=True) + "\n"
    Path(f"metrics/evaluate_{name}.json").write_text(text, encoding="utf-8")
    with open(f"results/evaluate_{name}.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(result, ensure_ascii=False) + "\n" for result in results)
    return 0


if __name__ == "__main__":
    sys.exit(report_mistakes(main))
