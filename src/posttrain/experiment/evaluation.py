"""From what a model did on held-out rows to one result a row and the metrics over them.

The results file (results/evaluate_<model>.jsonl) has a line a problem, then a line a pair. Results of two models pair
by `id`, which is made from the row's content. Fields of a problem:

    id, prompt, reference     the row: "prompts/<hash>", the messages, the right solution
    completion                the greedy answer
    correct, formatted        whether its `#### number` is right; whether there is one
    ended, num_tokens         whether it ended its turn; its tokens, the one that ends the turn included
    reward_score              of the greedy answer, where params name a reward model
    samples_correct           for the first `num_sampled_prompts` problems: of each sample, whether it is right
    samples_num_tokens        its tokens
    samples_log_ratio_<ref>   sum over its tokens of log p(model) - log p(reference), in nats; not for the reference

Fields of a pair:

    id, prompt                "preference/<hash>", the messages
    margin_logprob            log p(chosen) - log p(rejected), in nats
    margin_vs_<ref>           by how much that is more than under the reference, in nats; not for the reference
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from posttrain.experiment.evaluation_statistics import (
    kl_metrics,
    pass_at_k,
    share_above_zero,
    wilson_interval,
    with_interval,
)
from posttrain.grading import final_answer, is_correct

if TYPE_CHECKING:
    from posttrain.experiment.evaluation_models import Answer

Result = dict[str, Any]
Metrics = dict[str, float]


def grade_answers(rows: Sequence[dict[str, Any]], answers: Sequence[Answer]) -> list[Result]:
    """One result a problem, in the order of the rows.

    Args:
        rows: with `id`, `prompt` and `solution`.
        answers: the greedy one to each.
    """
    return [
        {
            "id": row["id"],
            "prompt": row["prompt"],
            "reference": row["solution"],
            "completion": answer.text,
            "correct": is_correct(answer.text, row["solution"]),
            "formatted": final_answer(answer.text) is not None,
            "ended": answer.ended,
            "num_tokens": len(answer.token_ids),
        }
        for row, answer in zip(rows, answers, strict=True)
    ]


def answer_metrics(results: Sequence[Result]) -> Metrics:
    """Shares and means of the results of grade_answers."""
    number = len(results)
    correct = sum(result["correct"] for result in results)
    low, high = wilson_interval(correct, number)
    return {
        "exact_match": correct / number,
        "exact_match_low": low,
        "exact_match_high": high,
        "format_rate": sum(result["formatted"] for result in results) / number,
        "eos_rate": sum(result["ended"] for result in results) / number,
        "mean_completion_length": sum(result["num_tokens"] for result in results) / number,
        "num_prompts": number,
    }


def grade_samples(rows: Sequence[dict[str, Any]], samples: Sequence[Sequence[Answer]]) -> list[Result]:
    """The fields `samples_correct` and `samples_num_tokens` of each problem that was sampled.

    Args:
        rows: with `solution`.
        samples: several answers to each.
    """
    return [
        {
            "samples_correct": [is_correct(answer.text, row["solution"]) for answer in answers],
            "samples_num_tokens": [len(answer.token_ids) for answer in answers],
        }
        for row, answers in zip(rows, samples, strict=True)
    ]


def sample_metrics(results: Sequence[Result], pass_at: Sequence[int]) -> Metrics:
    """pass@k over the results of grade_samples, with intervals over prompts.

    Args:
        results: of the problems that were sampled.
        pass_at: values of k, none above the samples a problem.
    """
    counts = [(len(result["samples_correct"]), sum(result["samples_correct"])) for result in results]
    metrics: Metrics = {"num_sampled_prompts": len(counts), "num_samples": counts[0][0]}
    for k in pass_at:
        chances = [pass_at_k(number, correct, k) for number, correct in counts]
        metrics |= with_interval(f"pass_at_{k}", chances, low=0.0, high=1.0)
    return metrics


def divergence(
    reference: str, samples: Sequence[Sequence[Answer]], theirs: Sequence[Sequence[np.ndarray]]
) -> tuple[list[Result], Metrics]:
    """How far the model is from the reference, on its own samples.

    Args:
        reference: its name.
        samples: of the model, with their log-probs.
        theirs: log-probs of the same tokens under the reference, at the same temperature.

    Returns:
        the field `samples_log_ratio_<reference>` of each problem that was sampled, and metrics `kl_to_<reference>…`.
    """
    ratios = [
        [answer.logprobs - other for answer, other in zip(answers, others, strict=True)]
        for answers, others in zip(samples, theirs, strict=True)
    ]
    field = f"samples_log_ratio_{reference}"
    results = [{field: [float(d.sum(dtype=np.float64)) for d in of_prompt]} for of_prompt in ratios]
    return results, kl_metrics(f"kl_to_{reference}", ratios)


def preference_metrics(
    reference: str, margins: Sequence[float], reference_margins: Sequence[float] | None
) -> tuple[list[Result], Metrics]:
    """How often the better answer is the likelier one, and how often it gained more than the worse one.

    Args:
        reference: name of the model that gains are counted from.
        margins: log p(chosen) - log p(rejected) of each pair.
        reference_margins: the same under the reference; None where it is the model itself.

    Returns:
        the fields of each pair, and the metrics.
    """
    columns = {"margin_logprob": list(margins)}
    metrics = {"num_pairs": len(margins), "preference_accuracy_logprob": share_above_zero(margins)}
    if reference_margins is not None:
        gains = [own - other for own, other in zip(margins, reference_margins, strict=True)]
        columns[f"margin_vs_{reference}"] = gains
        metrics[f"preference_accuracy_vs_{reference}"] = share_above_zero(gains)
    return [{name: values[number] for name, values in columns.items()} for number in range(len(margins))], metrics


def add_fields(results: Sequence[Result], fields: Sequence[Mapping[str, Any]]) -> None:
    """Write further fields into the first results, one mapping a result."""
    for result, more in zip(results, fields, strict=False):
        result.update(more)
