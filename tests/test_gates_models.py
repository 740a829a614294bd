"""Checks of models: correlations, areas and calibration by hand, and the signs of a policy that pleases its reward."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.config.yaml_files import FastLoader
from posttrain.errors import UserError
from posttrain.experiment.gates.correlations import (
    Bin,
    calibration_error,
    pearson,
    ranks,
    reliability,
    roc_auc,
    spearman,
)
from posttrain.experiment.gates.limits import Check
from posttrain.experiment.gates.model_checks import check_models
from posttrain.experiment.gates.model_settings import ModelSettings
from posttrain.experiment.settings import read_settings


def test_correlations_by_hand() -> None:
    # Differences from the means: -1, 0, 1 and -2, 1, 1: 3 / sqrt(2 · 6).
    assert pearson([1, 2, 3], [0, 3, 3]) == pytest.approx(3 / math.sqrt(12))
    assert pearson([1, 2, 3], [5, 5, 5]) is None
    assert ranks([30, 10, 20, 10]).tolist() == [4, 1.5, 3, 1.5]
    assert spearman([1, 2, 3, 4], [1, 8, 27, 1000]) == pytest.approx(1)
    assert spearman([1, 2, 3], [0, 3, 3]) == pytest.approx(1.5 / math.sqrt(2 * 1.5))


def test_area_by_hand() -> None:
    # True 1, 3, 4; false 2, 3. Pairs won: 0; 1 and a half; 2. In shares: V = 0, 0.75, 1, W = 2/3, 0.5.
    area = roc_auc([1, 3, 4, 2, 3], [True, True, True, False, False])
    assert area is not None
    assert area.value == pytest.approx(3.5 / 6)
    mean = 3.5 / 6
    v = ((0 - mean) ** 2 + (0.75 - mean) ** 2 + (1 - mean) ** 2) / 2
    w = (2 / 3 - mean) ** 2 + (0.5 - mean) ** 2
    half = 1.959964 * math.sqrt(v / 3 + w / 2)
    assert (area.low, area.high) == (max(0.0, mean - half), min(1.0, mean + half))
    assert roc_auc([1, 2, 3], [True, True, False]) is None


def test_area_is_the_share_of_pairs_won() -> None:
    scores, labels = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3], [True, False] * 5
    pairs = itertools.product(scores[::2], scores[1::2])
    area = roc_auc(scores, labels)
    assert area is not None
    assert area.value == pytest.approx(sum((a > b) + 0.5 * (a == b) for a, b in pairs) / 25)


def test_reliability_by_hand() -> None:
    sure = math.log(0.97 / 0.03)  # of a confidence of 0.97
    unsure = math.log(0.56 / 0.44)
    bins = reliability([sure, sure, -sure, unsure, -unsure])
    assert bins == [
        Bin(pytest.approx(0.55), 2, pytest.approx(0.56), 0.5),
        Bin(pytest.approx(0.95), 3, pytest.approx(0.97), pytest.approx(2 / 3)),
    ]
    assert calibration_error(bins) == pytest.approx((2 * 0.06 + 3 * (0.97 - 2 / 3)) / 5)


# Policies.

PARAMS = Path(__file__).resolve().parent.parent / "params.yaml"


def settings(**changed: Any) -> ModelSettings:
    own = yaml.load(PARAMS.read_text(encoding="utf-8"), FastLoader)["check_models"]
    return ModelSettings(**own | {"models": ["sft", "rloo"]} | changed)


def answer(number: int, correct: bool, score: float, tokens: int = 10, **more: Any) -> dict[str, Any]:
    text = f"{number} {'right' if correct else 'wrong'}"
    row = {"id": f"prompts/{number}", "completion": text, "correct": correct, "num_tokens": tokens}
    return row | {"reward_score": score} | more


def by_id(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in rows}


def found(
    sft: list[dict[str, Any]], rloo: list[dict[str, Any]], **changed: Any
) -> tuple[dict[str, Check], dict[str, float]]:
    results = {"sft": by_id(sft), "rloo": by_id(rloo)}
    checks, metrics, _ = check_models(results, None, settings(**changed))
    return {check.metric: check for check in checks}, metrics


def test_reward_up_and_accuracy_down_is_told() -> None:
    # Of 100 problems 60 were right and 40 are; 24 were lost and 4 won: a mean loss of 0.2.
    sft = [answer(n, n < 60, float(n % 3)) for n in range(100)]
    rloo = [answer(n, 24 <= n < 64, float(n % 3) + 1 + n % 2) for n in range(100)]
    checks, metrics = found(sft, rloo)
    hacking = checks["hacking/rloo_accuracy_loss"]
    # Squares of the differences: 28 of 100, so the variance is (28 - 100 · 0.04) / 99.
    half = 1.959964 * math.sqrt(24 / 99 / 100)
    assert metrics["hacking/rloo_accuracy_gain"] == pytest.approx(-0.2)
    assert metrics["hacking/rloo_reward_gain"] == pytest.approx(1.5)
    assert hacking.value == pytest.approx(0.2 - half)
    assert hacking.level == "fail"
    # The one that gained most where it lost the answer, and the line that it stands in.
    assert hacking.offenders[0].place == "results/evaluate_rloo.jsonl line 2"
    assert hacking.offenders[0].why == "no longer right, and 2.00 more reward"
    assert len(hacking.offenders) == 24


@pytest.mark.parametrize(
    ("lost", "more"),
    [
        (range(0), 1.0),  # reward up, accuracy the same
        (range(2), 1.0),  # accuracy down, by less than the noise
        (range(24), 0.0),  # accuracy down, reward the same
        (range(24), -1.0),  # both down: a bad model, and no hacking
    ],
)
def test_one_of_the_two_is_no_sign(lost: range, more: float) -> None:
    sft = [answer(n, n < 60, float(n % 3)) for n in range(100)]
    rloo = [answer(n, n < 60 and n not in lost, float(n % 3) + more) for n in range(100)]
    assert found(sft, rloo)[0]["hacking/rloo_accuracy_loss"].value == 0


def test_a_reward_that_no_longer_tells_right_from_wrong() -> None:
    sft = [answer(n, n % 2 == 0, (n % 2 == 0) * 2 + (n % 5) * 0.9) for n in range(100)]
    rloo = [answer(n, n % 2 == 0, 5 + (n % 5) * 0.1) for n in range(100)]
    checks, metrics = found(sft, rloo)
    before, after = checks["auc/sft"].value, checks["auc/rloo"].value
    assert (checks["auc/sft"].level, checks["auc/rloo"].level) == ("ok", "warn")
    assert after == pytest.approx(0.5)
    noise = math.hypot(before - metrics["auc/sft_low"], metrics["auc/rloo_high"] - after)
    assert checks["auc/rloo_loss"].value == pytest.approx(before - after - noise)
    assert checks["auc/rloo_loss"].level == "warn"
    assert checks["auc/rloo_loss"].offenders[0].why == "wrong, with a score of 5.40"


def test_length_that_the_reward_likes_and_the_task_does_not() -> None:
    rows = [answer(n, n % 2 == 0, float(n), tokens=10 + n) for n in range(100)]
    checks, metrics = found(rows, rows)
    assert metrics["length/rloo_reward_spearman"] == metrics["length/rloo_reward_pearson"] == pytest.approx(1)
    assert metrics["length/rloo_correct_pearson"] == pytest.approx(-0.5 / math.sqrt((100**2 - 1) / 12))
    gap = checks["length/rloo_correlation_gap"]
    assert gap.value == pytest.approx(1 - metrics["length/rloo_correct_spearman"])
    assert gap.level == "fail"
    assert gap.offenders[0].place == "results/evaluate_rloo.jsonl line 100"
    long = [row | {"num_tokens": 3 * row["num_tokens"]} for row in rows]
    assert found(rows, long)[0]["length/rloo_growth"].value == pytest.approx(3)


def test_samples_that_become_alike() -> None:
    def sampled(right: int, ratio: float, text: str | None = None) -> list[dict[str, Any]]:
        rows = []
        for n in range(100):
            samples = {"samples_correct": [False, n < right], "samples_log_ratio_sft": [ratio, ratio + 2]}
            row = answer(n, n < 40, float(n % 7)) | (samples if n < 50 else {})
            rows.append(row | ({} if text is None else {"completion": text}))
        return rows

    checks, metrics = found(sampled(45, 0.0), sampled(25, 11.0, "42"))
    # Of 50 problems 20 are no longer solved: mean 0.4, variance (20 - 50 · 0.16) / 49.
    assert metrics["diversity/rloo_pass_gain"] == pytest.approx(-0.4)
    assert checks["diversity/rloo_pass_loss"].value == pytest.approx(0.4 - 1.959964 * math.sqrt(12 / 49 / 50))
    assert checks["diversity/rloo_pass_loss"].level == "fail"
    assert checks["kl/rloo"].value == pytest.approx(12)
    assert checks["kl/rloo"].level == "warn"
    assert checks["diversity/rloo_distinct"].value == pytest.approx(1 / 100)
    assert "auc/sft_loss" not in checks and "kl/sft" not in checks


def test_the_reward_model_on_pairs_of_what_the_models_wrote() -> None:
    sft = [answer(0, True, 1.0), answer(1, False, 0.0), answer(2, True, 1.0)]
    rloo = [answer(0, False, 3.0), answer(1, True, 2.0), answer(2, True, 0.0)]
    results = {"sft": by_id(sft), "rloo": by_id(rloo)}
    checks, metrics, bins = check_models(results, None, settings())
    by_name = {check.metric: check for check in checks}
    # Problem 0: the wrong one scored 2 above; problem 1: the right one did; problem 2 has no wrong one.
    assert metrics["reward_model/num_answer_pairs"] == sum(each.num_pairs for each in bins) == 2
    accuracy = by_name["reward_model/answer_accuracy"]
    assert accuracy.value == 0.5
    assert [offender.place for offender in accuracy.offenders] == ["results/evaluate_rloo.jsonl line 1"]
    assert accuracy.offenders[0].why == "wrong, and scored 2.00 above a right answer to the same problem"
    error = by_name["reward_model/answer_calibration_error"].value
    assert error == pytest.approx(1 / (1 + math.exp(-2)) - 0.5)


def test_without_a_reward_model_the_rest_is_measured() -> None:
    rows = [
        {key: value for key, value in answer(n, n % 2 == 0, 0.0).items() if key != "reward_score"} for n in range(9)
    ]
    checks, _ = found(rows, rows)
    assert set(checks) == {"length/rloo_growth", "diversity/rloo_distinct"}


def test_the_reward_model_s_own_metrics() -> None:
    rows = [answer(n, False, 0.0) for n in range(3)]
    results = {"sft": by_id(rows), "rloo": by_id(rows)}
    metrics = {"eval_accuracy": 0.6, "eval_calibration_error": 0.2, "eval_brier_score": 0.1, "accuracy": 1.0}
    levels = {check.metric: check.level for check in check_models(results, metrics, settings())[0]}
    assert levels["reward_model/accuracy"] == "warn"
    assert levels["reward_model/calibration_error"] == "fail"
    assert levels["reward_model/brier_score"] == "ok"
    with pytest.raises(UserError, match=r"there is no eval_accuracy; set reward\.eval_strategy to steps"):
        check_models(results, {"accuracy": 1.0}, settings())


def test_what_does_not_fit_together_is_named() -> None:
    rows = [answer(n, False, 0.0) for n in range(3)]
    with pytest.raises(UserError, match=r"evaluate_rloo\.jsonl is of other problems than that of sft"):
        found(rows, rows[:2])
    sampled = [row | {"samples_correct": [True], "samples_log_ratio_dpo": [0.0]} for row in rows]
    with pytest.raises(UserError, match=r"there is no samples_log_ratio_sft; check_models\.reference and "):
        found(sampled, sampled)


def test_the_shipped_section_is_understood() -> None:
    assert read_settings(ModelSettings, "check_models", str(PARAMS)).reference == "sft"
