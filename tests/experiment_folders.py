"""Folders with what an experiment leaves: params.yaml, metrics/ and results/, by the functions of `evaluate`."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import yaml

from posttrain.experiment import evaluation
from posttrain.experiment.evaluation_statistics import with_interval

SPEED = {"tokens_per_second": 1000.0, "step_time": 0.1, "peak_memory_mib": 640.0}


def evaluated(
    skill: float, draws: int = 0, num_rows: int = 200, first_row: int = 0
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Metrics and results of a made-up model.

    Args:
        skill: the chance of a right answer.
        draws: seed of all that it does; the same one errs on the same rows.
        num_rows: problems, and pairs; half of the problems are sampled 4 times.
        first_row: its number; rows of the same number are the same.
    """
    generator = np.random.default_rng(draws)
    numbers = range(first_row, first_row + num_rows)
    problems = [{"id": f"prompts/{n}", "prompt": [], "solution": f"#### {n}"} for n in numbers]

    def answer(row: dict[str, Any]) -> Any:
        is_right, length = generator.random() < skill, int(generator.integers(5, 30))
        text = row["solution"] if is_right else "so 7" if length % 2 else "#### -1"
        logprobs = generator.normal(skill - 1, 0.1, length).astype(np.float32)
        return SimpleNamespace(text=text, ended=length < 28, token_ids=list(range(length)), logprobs=logprobs)

    results = evaluation.grade_answers(problems, [answer(row) for row in problems])
    metrics = evaluation.answer_metrics(results)
    sampled = problems[: num_rows // 2]
    samples = [[answer(row) for _ in range(4)] for row in sampled]
    evaluation.add_fields(results, evaluation.grade_samples(sampled, samples))
    metrics |= evaluation.sample_metrics(results[: len(sampled)], [1, 4])
    theirs = [[one.logprobs - generator.normal(0.02, 0.1, len(one.logprobs)) for one in own] for own in samples]
    fields, more = evaluation.divergence("sft", samples, theirs)
    evaluation.add_fields(results, fields)
    metrics |= more
    margins = generator.normal(skill, 1, num_rows).tolist()
    fields, more = evaluation.preference_metrics("sft", margins, generator.normal(0, 1, num_rows).tolist())
    metrics |= more
    scores = generator.normal(skill, 1, num_rows).tolist()
    evaluation.add_fields(results, [{"reward_score": score} for score in scores])
    metrics |= with_interval("reward_score", scores)
    pairs = [{"id": f"preference/{n}", "prompt": [], **field} for n, field in zip(numbers, fields, strict=True)]
    return metrics, [*results, *pairs]


def write_experiment(
    folder: Path, skill: float, seed: int = 0, beta: float = 0.5, results: bool = True, **options: int
) -> Path:
    """Write an experiment of two stages, dpo and its evaluation; returns its folder."""
    for name in ("metrics", "results"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    metrics, rows = evaluated(skill, **options)
    (folder / "params.yaml").write_text(yaml.safe_dump({"dpo": {"beta": beta, "seed": seed}, "evaluate": {"seed": 0}}))
    training = {"eval_loss": 1 - skill, "grad_norm": skill, "eval_rewards/accuracies": skill} | SPEED
    training["tokens_per_second"] *= 1 + skill
    (folder / "metrics/dpo.json").write_text(json.dumps(training))
    (folder / "metrics/evaluate_dpo.json").write_text(json.dumps(metrics))
    if results:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "results/evaluate_dpo.jsonl").write_text(text)
    return folder
