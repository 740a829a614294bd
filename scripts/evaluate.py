# ruff: noqa: RUF009 (flag() returns a dataclass field)
"""A model on the held-out rows: the stage `evaluate`.

    python scripts/evaluate.py MODEL-NAME [--params params.yaml]

Loads models/MODEL-NAME and writes metrics/evaluate_MODEL-NAME.json and, a line a problem and a line a pair, results/
evaluate_MODEL-NAME.jsonl (its fields: posttrain/experiment/evaluation.py).
"""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The code beside this script, not an installed one: in the copies that DVC makes of a commit, that of the commit.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from posttrain.config.fields import flag, suggestion
from posttrain.errors import UserError, report_mistakes
from posttrain.experiment import evaluation
from posttrain.experiment.evaluation_data import read_pairs, read_problems
from posttrain.experiment.evaluation_statistics import with_interval
from posttrain.experiment.settings import read_settings, split_words
from posttrain.gpu_slots import take_slot
from posttrain.loading import collector_at_rest

REQUIRED = dataclasses.MISSING
USAGE = "scripts/evaluate.py MODEL-NAME [--params FILE]"


@dataclass(kw_only=True)
class EvaluateSettings:
    """The section `evaluate` of params.yaml."""

    prompts: str = flag(REQUIRED, "File of held-out problems with `prompt` and `solution`.")
    pairs: str = flag(REQUIRED, "File of held-out pairs with `prompt`, `chosen` and `rejected`.")
    reference: str = flag(REQUIRED, "Name of the model that preferences and divergence are measured against.")
    reward_model: str | None = flag(REQUIRED, "Name of the model that scores the greedy answers; none: no scores.")
    max_new_tokens: int = flag(REQUIRED, "Where an answer without an end is cut off, in tokens.", low=1)
    num_sampled_prompts: int = flag(REQUIRED, "Problems, from the first, that are answered several times.", low=1)
    num_samples: int = flag(REQUIRED, "Samples of each of them.", low=1)
    pass_at: list[int] = flag(REQUIRED, "Values of k in pass@k.", low=1)
    temperature: float = flag(REQUIRED, "Of the samples; divides the logits.")
    seed: int = flag(REQUIRED, "Where the samples' draws come from.", low=0)
    dtype: str = flag(REQUIRED, "Of the weights.", choices=("auto", "bfloat16", "float16", "float32"))
    batch_size: int = flag(REQUIRED, "Answers that are written at a time.", low=1)
    tokens_at_once: int = flag(REQUIRED, "Tokens of answers and prompts that are scored at a time.", low=1)
    num_threads: int = flag(REQUIRED, "Cores.", low=1)


def check_numbers(settings: EvaluateSettings, num_problems: int, where: str) -> None:
    """Raise a UserError where one number does not fit another."""
    if not settings.pass_at or max(settings.pass_at) > settings.num_samples:
        raise UserError(
            f"{where}.pass_at is {settings.pass_at}; wanted at least one k, and none above {where}.num_samples, "
            f"which is {settings.num_samples}"
        )
    if settings.temperature <= 0:
        raise UserError(f"{where}.temperature is {settings.temperature:g}; samples need one above 0")
    if settings.num_sampled_prompts > num_problems:
        raise UserError(
            f"{where}.num_sampled_prompts is {settings.num_sampled_prompts}; {settings.prompts} holds {num_problems}"
        )


def check_model(name: str) -> None:
    """Raise a UserError where models/NAME does not hold a whole model or adapter."""
    folder = Path("models") / name
    kinds = ("config.json", "adapter_config.json")
    if not any((folder / kind).is_file() for kind in kinds):
        known = sorted({path.parent.name for kind in kinds for path in Path("models").glob(f"*/{kind}")})
        found = f"models/ holds {', '.join(known)}" if known else "models/ holds none yet; `make pipeline` trains them"
        raise UserError(f"{folder} is no model folder{suggestion(name, known)}; {found}")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder} holds no weights (*.safetensors); run the stage that writes it again")


def check_tokens(name: str, reference: str) -> None:
    """Raise a UserError where two models number their tokens in different ways: none can score the other's samples."""
    files = [Path("models") / model / "tokenizer.json" for model in (name, reference)]
    if all(file.is_file() for file in files):  # not every tokenizer is kept in one
        first, second = (json.loads(file.read_text(encoding="utf-8"))["model"].get("vocab") for file in files)
        if first != second:
            raise UserError(
                f"{files[0].parent} and {files[1].parent} have different vocabularies, so the one cannot score the "
                "tokens of the other; name a `reference` that the model was trained from"
            )


def main() -> int:
    # Read the arguments, the section and the held-out rows: a mistake ends here, before torch is imported.
    alone, path = split_words(sys.argv[1:], USAGE)
    if len(alone) != 1:
        raise UserError(f"wanted the name of one model, found {len(alone)}; usage: {USAGE}")
    name = alone[0]
    settings = read_settings(EvaluateSettings, "evaluate", path)
    for model in filter(None, (name, settings.reference, settings.reward_model)):
        check_model(model)
    check_tokens(name, settings.reference)
    problems, pairs = read_problems(settings.prompts), read_pairs(settings.pairs)
    check_numbers(settings, len(problems), f"{path}: evaluate")
    take_slot()

    metrics, results = evaluate(name, settings, problems, pairs)

    for folder_name in ("metrics", "results"):
        Path(folder_name).mkdir(exist_ok=True)
    text = json.dumps(metrics, indent=2, sort_keys=True) + "\n"
    Path(f"metrics/evaluate_{name}.json").write_text(text, encoding="utf-8")
    with open(f"results/evaluate_{name}.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(result, ensure_ascii=False) + "\n" for result in results)
    return 0


def evaluate(
    name: str, settings: EvaluateSettings, problems: list[dict[str, Any]], pairs: list[dict[str, Any]]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The metrics of a model, and a result a problem and a pair."""
    with collector_at_rest():
        import torch

        from posttrain.experiment import evaluation_models as models
        from posttrain.experiment.evaluation_rewards import reward_scores

    torch.set_num_threads(settings.num_threads)
    size, num_tokens = settings.batch_size, settings.tokens_at_once

    # Answer the problems once, the likeliest way, and the first of them several times; grade the answers.
    policy = models.load_policy(Path("models") / name, settings.dtype)
    prompts = models.prompt_tokens(policy.tokenizer, [row["prompt"] for row in problems])
    greedy = models.Generation(settings.max_new_tokens)
    answers = [own[0] for own in models.generate_answers(policy, prompts, greedy, size, f"{name}: answers")]
    results = evaluation.grade_answers(problems, answers)
    metrics = evaluation.answer_metrics(results)
    sampled = prompts[: settings.num_sampled_prompts]
    sampling = models.Generation(settings.max_new_tokens, settings.num_samples, settings.temperature, settings.seed)
    samples = models.generate_answers(policy, sampled, sampling, size, f"{name}: samples")
    evaluation.add_fields(results, evaluation.grade_samples(problems[: len(sampled)], samples))
    metrics |= evaluation.sample_metrics(results[: len(sampled)], settings.pass_at)

    # Score both answers of each pair, and under the reference the model's samples too.
    margins = models.pair_margins(policy, pairs, num_tokens, f"{name}: pairs")
    reference_margins = None
    if name != settings.reference:
        reference = models.load_policy(Path("models") / settings.reference, settings.dtype)
        reference_margins = models.pair_margins(reference, pairs, num_tokens, f"{settings.reference}: pairs")
        completions = [[answer.token_ids for answer in own] for own in samples]
        title = f"{settings.reference}: samples"
        theirs = models.completion_logprobs(reference, sampled, completions, num_tokens, title, settings.temperature)
        fields, further = evaluation.divergence(settings.reference, samples, theirs)
        evaluation.add_fields(results, fields)
        metrics |= further
    fields, further = evaluation.preference_metrics(settings.reference, margins, reference_margins)
    results += [
        {"id": pair["id"], "prompt": pair["prompt"], **field} for pair, field in zip(pairs, fields, strict=True)
    ]
    metrics |= further

    # Ask the reward model what it thinks of the greedy answers.
    if settings.reward_model is not None:
        conversations, texts = [row["prompt"] for row in problems], [answer.text for answer in answers]
        scores = reward_scores(Path("models") / settings.reward_model, settings.dtype, conversations, texts, num_tokens)
        evaluation.add_fields(results, [{"reward_score": score} for score in scores])
        metrics |= with_interval("reward_score", scores)
    return metrics, results


if __name__ == "__main__":
    sys.exit(report_mistakes(main))
