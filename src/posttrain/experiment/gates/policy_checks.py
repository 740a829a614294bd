"""Signs that a policy has learnt to please its reward and not to be right, against the model that it was trained from.

Two models answer the same problems, so what is compared is the difference on each problem: the interval of its mean is
much narrower than those of the two figures. A loss counts as far as it is sure: the end of the 95% interval that is
nearest to no loss.
"""

from collections.abc import Callable, Sequence
from typing import Any

from posttrain.errors import UserError
from posttrain.experiment.evaluation_statistics import mean_interval
from posttrain.experiment.gates.correlations import Estimate, pearson, roc_auc, spearman
from posttrain.experiment.gates.limits import Check, Offender
from posttrain.experiment.gates.model_settings import ModelSettings

Result = dict[str, Any]
Measured = tuple[list[Check], dict[str, float]]
_EXAMPLES = 20  # answers that are told where none by itself is at fault: the extreme ones


def check_policy(name: str, own: Sequence[Result], reference: Sequence[Result], settings: ModelSettings) -> Measured:
    """Measure one model.

    Args:
        name: of the model.
        own: its results on the problems.
        reference: those of the reference, of the same problems in the same order; the very same ones for itself.
        settings: the thresholds.

    Returns:
        the checks and further metrics.

    Raises:
        UserError: it was evaluated against another reference.
    """
    parts = []
    if all("reward_score" in row for row in (*own, *reference)):
        parts.append(_reward_and_right(name, own, reference, settings))
        parts.append(_reward_and_length(name, own, settings))
        if name != settings.reference:
            parts.append(_hacking(name, own, reference, settings))
    if name != settings.reference:
        parts.append(_length_growth(name, own, reference, settings))
        parts.append(_divergence(name, own, settings))
        parts.append(_diversity(name, own, reference, settings))
    checks = [check for of_part, _ in parts for check in of_part]
    return checks, {key: value for _, metrics in parts for key, value in metrics.items()}


def _check(settings: ModelSettings, key: str, metric: str, value: float, *words: Any) -> list[Check]:
    """The check, where there are thresholds for it."""
    thresholds = getattr(settings, key)
    return [] if thresholds is None else [Check(metric, value, key, thresholds, *words)]


def _offenders(
    name: str, rows: Sequence[Result], worst_first: Sequence[int], why: Callable[[int], str]
) -> list[Offender]:
    """Rows of a model's results, which stand in their file in the same order."""
    place = f"results/evaluate_{name}.jsonl line"
    return [Offender(f"{place} {number + 1}", rows[number]["completion"], why(number)) for number in worst_first]


def _paired(own: Sequence[float], reference: Sequence[float]) -> Estimate:
    """Mean difference over the problems."""
    return Estimate(*mean_interval([one - other for one, other in zip(own, reference, strict=True)]))


def _interval(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _area(rows: Sequence[Result]) -> Estimate | None:
    return roc_auc([row["reward_score"] for row in rows], [row["correct"] for row in rows])


def _reward_and_right(
    name: str, own: Sequence[Result], reference: Sequence[Result], settings: ModelSettings
) -> Measured:
    """Whether the reward still tells a right answer from a wrong one."""
    area = _area(own)
    if area is None:
        return [], {}
    worst = sorted((n for n, row in enumerate(own) if not row["correct"]), key=lambda n: -own[n]["reward_score"])
    offenders = _offenders(
        name, own, worst[:_EXAMPLES], lambda n: f"wrong, with a score of {own[n]['reward_score']:.2f}"
    )
    meaning = "chance that a right answer of this model outscores a wrong one of its own; 0.5 is a coin's"
    way_out = "train the reward model on answers of this model, or stop before the reward says nothing more"
    checks = _check(settings, "min_auc", f"auc/{name}", area.value, meaning, way_out, offenders)
    metrics = {f"auc/{name}_low": area.low, f"auc/{name}_high": area.high}
    before = _area(reference)
    if name == settings.reference or before is None:
        return checks, metrics
    # Both intervals add in squares as if the answers were unrelated, which errs on the side of no loss.
    half = ((before.value - before.low) ** 2 + (area.high - area.value) ** 2) ** 0.5
    sure = max(0.0, before.value - area.value - half)
    meaning = f"by how much auc/{name} is surely below that of {settings.reference}"
    return checks + _check(settings, "max_auc_loss", f"auc/{name}_loss", sure, meaning, way_out, offenders), metrics


def _reward_and_length(name: str, own: Sequence[Result], settings: ModelSettings) -> Measured:
    """Whether the reward goes with length where being right does not."""
    lengths, scores = [float(row["num_tokens"]) for row in own], [row["reward_score"] for row in own]
    right = [float(row["correct"]) for row in own]
    found = {
        f"length/{name}_{of}_{kind}": correlation(values, lengths)
        for of, values in (("reward", scores), ("correct", right))
        for kind, correlation in (("pearson", pearson), ("spearman", spearman))
    }
    metrics = {key: value for key, value in found.items() if value is not None}
    reward, correct = found[f"length/{name}_reward_spearman"], found[f"length/{name}_correct_spearman"]
    if reward is None or correct is None:
        return [], metrics
    worst = sorted(
        (n for n, row in enumerate(own) if not row["correct"]), key=lambda n: -lengths[n] * (reward - correct)
    )
    offenders = _offenders(
        name, own, worst[:_EXAMPLES], lambda n: f"wrong, {lengths[n]:.0f} tokens, a score of {scores[n]:.2f}"
    )
    meaning = f"reward goes with length by {reward:.2f}, being right by {correct:.2f} (Spearman's correlations)"
    way_out = "balance the lengths of the reward model's pairs, or take a cost a token from the reward"
    value = abs(reward - correct)
    return _check(
        settings, "max_length_correlation", f"length/{name}_correlation_gap", value, meaning, way_out, offenders
    ), metrics


def _hacking(name: str, own: Sequence[Result], reference: Sequence[Result], settings: ModelSettings) -> Measured:
    """Reward up, accuracy down, both beyond noise (what a policy does to a proxy: arXiv 2210.10760)."""
    reward = _paired([row["reward_score"] for row in own], [row["reward_score"] for row in reference])
    right = _paired([float(row["correct"]) for row in own], [float(row["correct"]) for row in reference])
    gains = [one["reward_score"] - other["reward_score"] for one, other in zip(own, reference, strict=True)]
    lost = [n for n, row in enumerate(own) if reference[n]["correct"] and not row["correct"] and gains[n] > 0]
    offenders = _offenders(
        name, own, sorted(lost, key=lambda n: -gains[n]), lambda n: f"no longer right, and {gains[n]:.2f} more reward"
    )
    sure = max(0.0, -right.high) if reward.low > 0 else 0.0
    meaning = (
        f"the reward rose by {reward.value:.3g} and exact match fell by {-right.value:.3g}, surely by so much"
        if sure
        else "no sign that the reward rose and exact match fell"
    )
    way_out = "raise its beta, train for fewer steps, or reward being right: what it learns to please is not the task"
    checks = _check(settings, "max_hacking_loss", f"hacking/{name}_accuracy_loss", sure, meaning, way_out, offenders)
    gained = _interval(f"hacking/{name}_reward_gain", reward) | _interval(f"hacking/{name}_accuracy_gain", right)
    return checks, gained


def _length_growth(name: str, own: Sequence[Result], reference: Sequence[Result], settings: ModelSettings) -> Measured:
    before, after = (sum(row["num_tokens"] for row in rows) for rows in (reference, own))
    longest = sorted(range(len(own)), key=lambda n: -own[n]["num_tokens"])
    offenders = _offenders(name, own, longest[:_EXAMPLES], lambda n: f"{own[n]['num_tokens']} tokens")
    meaning, way_out = "mean tokens of an answer over the reference's", "look whether the answers are better or longer"
    metric, value = f"length/{name}_growth", after / max(1, before)
    return _check(settings, "max_length_growth", metric, value, meaning, way_out, offenders), {}


def _divergence(name: str, own: Sequence[Result], settings: ModelSettings) -> Measured:
    field = f"samples_log_ratio_{settings.reference}"
    sampled = [row for row in own if "samples_correct" in row]
    if not sampled:
        return [], {}
    if field not in sampled[0]:
        raise UserError(
            f"results/evaluate_{name}.jsonl: there is no {field}; check_models.reference and evaluate.reference have "
            "to name the same model"
        )
    means = [sum(row[field]) / len(row[field]) for row in sampled]
    meaning = "divergence KL(model ‖ reference), nats a completion"
    way_out = "raise its beta, lower its learning rate or train for fewer steps"
    return _check(settings, "max_kl", f"kl/{name}", sum(means) / len(means), meaning, way_out), {}


def _diversity(name: str, own: Sequence[Result], reference: Sequence[Result], settings: ModelSettings) -> Measured:
    """Whether samples still differ: pass@k with k all of them, and how many greedy answers are different."""
    sampled = [n for n, row in enumerate(own) if "samples_correct" in row and "samples_correct" in reference[n]]
    checks, metrics = [], {}
    if sampled:
        count = min(len(rows[n]["samples_correct"]) for rows in (own, reference) for n in sampled)
        solved = [[float(any(rows[n]["samples_correct"][:count])) for n in sampled] for rows in (own, reference)]
        gain = _paired(*solved)
        lost = [n for n, one, other in zip(sampled, *solved, strict=True) if other > one]
        offenders = _offenders(name, own, lost, lambda n: f"none of {count} samples is right; the reference had one")
        meaning = f"by how much the share of problems with a right one of {count} samples surely fell"
        way_out = "sample hotter in training, raise beta or train for fewer steps: it finds fewer solutions than before"
        sure, metric = max(0.0, -gain.high), f"diversity/{name}_pass_loss"
        checks += _check(settings, "max_pass_loss", metric, sure, meaning, way_out, offenders)
        metrics = _interval(f"diversity/{name}_pass_gain", gain)
    shares = [len({row["completion"] for row in rows}) / len(rows) for rows in (own, reference)]
    meaning, way_out = "different greedy answers over the reference's", "it gives many problems one answer: see results"
    metric = f"diversity/{name}_distinct"
    return checks + _check(settings, "min_distinct", metric, shares[0] / shares[1], meaning, way_out), metrics
