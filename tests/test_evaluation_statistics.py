"""Shares, means and their intervals, pass@k and divergence, by hand."""

import itertools
import math

import numpy as np
import pytest

from posttrain.experiment.evaluation_statistics import (
    kl_metrics,
    mean_interval,
    pass_at_k,
    share_above_zero,
    wilson_interval,
    with_interval,
)


def test_wilson_interval_by_hand() -> None:
    # z = 1.96: (0.5 + 3.8415/200) / (1 + 3.8415/100) = 0.5, and half of 1.96 * sqrt(0.0025 + 3.8415/40000) / 1.038415
    assert wilson_interval(50, 100) == pytest.approx((0.40383, 0.59617), abs=1e-5)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.27753), abs=1e-5)
    assert wilson_interval(10, 10) == pytest.approx((0.72247, 1.0), abs=1e-5)


def test_interval_of_a_mean_by_hand() -> None:
    # mean 3, variance (4 + 1 + 0 + 1 + 4) / 4 = 2.5, so 1.959964 * sqrt(2.5 / 5) on either side
    assert mean_interval([1, 2, 3, 4, 5]) == pytest.approx((3.0, 3 - 1.385904, 3 + 1.385904), abs=1e-6)
    assert mean_interval([0.25]) == (0.25, 0.25, 0.25)


def test_an_interval_ends_where_values_cannot_lie() -> None:
    # mean 0.75, variance 0.25, 1.959964 * sqrt(0.25 / 4) = 0.48999
    metrics = with_interval("pass_at_1", [1, 1, 1, 0], low=0, high=1)
    assert metrics == pytest.approx({"pass_at_1": 0.75, "pass_at_1_low": 0.26001, "pass_at_1_high": 1.0}, abs=1e-5)


@pytest.mark.parametrize(
    ("num_samples", "num_correct", "k", "expected"),
    [
        (8, 0, 4, 0.0),
        (8, 8, 1, 1.0),
        (8, 3, 1, 3 / 8),
        (4, 2, 2, 1 - 1 / 6),  # of the 6 pairs of 4 samples, one holds both wrong ones
        (8, 5, 4, 1.0),  # 3 wrong ones cannot fill 4 places
        (8, 1, 8, 1.0),
    ],
)
def test_pass_at_k_by_hand(num_samples: int, num_correct: int, k: int, expected: float) -> None:
    assert pass_at_k(num_samples, num_correct, k) == pytest.approx(expected)


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one() -> None:
    for num_correct, k in itertools.product(range(7), range(1, 7)):
        samples = [True] * num_correct + [False] * (6 - num_correct)
        subsets = [any(subset) for subset in itertools.combinations(samples, k)]
        assert pass_at_k(6, num_correct, k) == pytest.approx(sum(subsets) / len(subsets))


def test_divergence_by_hand() -> None:
    first, second = np.array([0.5, -0.25], dtype=np.float32), np.array([1.0], dtype=np.float32)
    third, fourth = np.array([0.0], dtype=np.float32), np.array([0.25], dtype=np.float32)
    metrics = kl_metrics("kl", [[first, second], [third, fourth]])
    # Sums 0.25 and 1, 0 and 0.25; means of the prompts 0.625 and 0.125; half an interval is z * 0.25.
    assert metrics["kl"] == pytest.approx(0.375)
    assert metrics["kl_low"] == pytest.approx(0.375 - 1.959964 * 0.25)
    assert metrics["kl_high"] == pytest.approx(0.375 + 1.959964 * 0.25)
    assert metrics["kl_per_token"] == pytest.approx(1.5 / 5)
    k3 = [math.exp(-d) - 1 + d for d in (0.5, -0.25, 1.0, 0.0, 0.25)]
    assert metrics["kl_k3_per_token"] == pytest.approx(sum(k3) / 5)


def test_both_estimators_find_the_divergence_of_two_distributions() -> None:
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.3, 0.3, 0.4])
    exact = float((p * np.log(p / q)).sum())
    drawn = np.random.default_rng(0).choice(3, size=200_000, p=p)
    metrics = kl_metrics("kl", [[np.log(p / q)[[token]] for token in drawn]])
    # Four standard errors of either: k1 varies by 0.43, k3 by 0.10 a sample.
    assert metrics["kl_per_token"] == pytest.approx(exact, abs=0.004)
    assert metrics["kl_k3_per_token"] == pytest.approx(exact, abs=0.001)


def test_a_tie_is_no_preference() -> None:
    assert share_above_zero([1.0, 0.0, -1.0, 2.0]) == 0.5
