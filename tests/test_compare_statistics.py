"""Intervals of differences: by hand, against tables, and whether they hold the truth as often as they say."""

import itertools
import math

import numpy as np
import pytest

from posttrain.experiment.comparison.statistics import (
    Rows,
    bootstrap_differences,
    mean_and_half_width,
    paired_t,
    t_quantile,
    welch_t,
)


def mean_of(values: np.ndarray) -> Rows:
    return Rows(values, np.ones(len(values)))


# A table of Student's t, as in any textbook: two-sided 95%.
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 30: 2.042, 100: 1.984, 1000: 1.962}


@pytest.mark.parametrize(("degrees", "quantile"), TABLE.items())
def test_quantiles_are_those_of_the_table(degrees: int, quantile: float) -> None:
    assert t_quantile(degrees) == pytest.approx(quantile, abs=6e-4)


def test_one_degree_of_freedom_is_the_distribution_of_cauchy() -> None:
    assert t_quantile(1) == pytest.approx(math.tan(0.475 * math.pi), rel=1e-12)


def test_the_density_up_to_a_quantile_of_2_5_degrees_is_97_5_percent() -> None:
    degrees = 2.5
    x = np.linspace(0, t_quantile(degrees), 100_001)
    norm = math.gamma((degrees + 1) / 2) / (math.gamma(degrees / 2) * math.sqrt(degrees * math.pi))
    assert np.trapezoid(norm * (1 + x**2 / degrees) ** (-(degrees + 1) / 2), x) == pytest.approx(0.475, abs=1e-8)


def test_paired_differences_over_seeds() -> None:
    """0.30, 0.35, 0.28 → 0.34, 0.37, 0.34: differences 0.04, 0.02, 0.06; mean 0.04, s = 0.02, s/√3 = 0.011547,
    times 4.3027 = 0.049683."""
    found = paired_t([0.30, 0.35, 0.28], [0.34, 0.37, 0.34])
    assert found == pytest.approx((0.04, 0.04 - 0.049683, 0.04 + 0.049683), abs=1e-5)


def test_unpaired_differences_over_seeds() -> None:
    """1, 3 (mean 2, s² = 2, s²/n = 1) and 5, 7, 9 (mean 7, s² = 4, s²/n = 4/3): √(7/3) = 1.527525;
    ν = (7/3)² / (1/1 + (16/9)/2) = 5.444444/1.888889 = 2.882353."""
    found = welch_t([1, 3], [5, 7, 9])
    half = t_quantile(2.882353) * 1.527525
    assert t_quantile(3) < t_quantile(2.882353) < t_quantile(2)
    assert found == pytest.approx((5.0, 5.0 - half, 5.0 + half), abs=1e-5)


def test_seeds_that_all_agree_have_an_interval_without_width() -> None:
    assert paired_t([1, 2], [2, 3]) == (1, 1, 1)
    assert welch_t([1, 1], [2, 2]) == (1, 1, 1)


def test_mean_over_seeds() -> None:
    """0.32, 0.324, 0.303: mean 0.315667, s = 0.011150, s/√3 = 0.006438, times 4.302653 = 0.027699."""
    assert mean_and_half_width([0.32, 0.324, 0.303]) == pytest.approx((0.315667, 0.027699), abs=1e-6)
    mean, half = mean_and_half_width([0.5])
    assert mean == 0.5 and math.isnan(half)


def test_the_bootstrap_draws_what_enumerating_all_draws_gives() -> None:
    """Of 4 rows with differences 0, 0, 0, 1 there are 4⁴ = 256 draws; the mean is k/4 with k ~ binomial(4, 1/4):
    P(0) = 81/256 = 31.6%, P(k ≤ 2) = 94.9%, P(k ≤ 3) = 99.6%. So the quantiles are 0 and 3/4."""
    left, right = np.zeros(4), np.array([0.0, 0.0, 0.0, 1.0])
    means = [np.mean(draw) for draw in itertools.product(right, repeat=4)]
    (found,) = bootstrap_differences([(mean_of(left), mean_of(right))], paired=True)
    assert np.quantile(means, [0.025, 0.975]) == pytest.approx([0, 0.75])
    assert found == (0.25, 0.0, 0.75)


def test_a_ratio_of_sums_is_drawn_row_by_row() -> None:
    """Rows (1 of 1) and (0 of 3): 1/4. A draw takes one of them twice (1, or 0) or both (1/4)."""
    left = Rows(np.array([0.0, 0.0]), np.array([1.0, 3.0]))
    right = Rows(np.array([1.0, 0.0]), np.array([1.0, 3.0]))
    (found,) = bootstrap_differences([(left, right)], paired=True)
    assert right.value == 0.25
    assert found == (0.25, 0.0, 1.0)


def test_pairing_takes_out_what_both_share() -> None:
    generator = np.random.default_rng(1)
    hardness = generator.normal(size=400)
    left, right = mean_of(hardness), mean_of(hardness + 0.1 + 0.05 * generator.normal(size=400))
    (paired,) = bootstrap_differences([(left, right)], paired=True)
    (unpaired,) = bootstrap_differences([(left, right)], paired=False)
    assert paired.low > 0 > unpaired.low
    assert paired.difference == unpaired.difference
    # 1.96 · √(2 · 1/400) either way, as for two independent samples of variance 1
    assert unpaired.high - unpaired.low == pytest.approx(2 * 1.96 * math.sqrt(2 * hardness.var() / 400), rel=0.05)


def test_the_same_rows_give_the_same_interval() -> None:
    values = np.random.default_rng(2).normal(size=(2, 300))
    twice = [bootstrap_differences([(mean_of(values[0]), mean_of(values[1]))], paired=True) for _ in range(2)]
    together = bootstrap_differences([(mean_of(values[0]), mean_of(values[1]))] * 2, paired=True)
    assert twice[0] == twice[1]
    assert together[0] == pytest.approx(twice[0][0]) and together[1] == pytest.approx(twice[0][0])


@pytest.mark.parametrize("paired", [True, False])
def test_intervals_hold_the_truth_in_95_of_100_cases(paired: bool) -> None:
    """1,000 pairs of models on 200 problems of their own: right with chance 0.5 and 0.6, on problems of which half
    are twice as hard. With 1,000 cases a true 95% would be found as 93.6% to 96.4% in 95 of 100 tries."""
    generator = np.random.default_rng(3)
    hard = generator.random((2, 1000, 200)) < 0.5
    draws = generator.random((2, 1000, 200))
    second = hard[0] if paired else hard[1]
    left = draws[0] < np.where(hard[0], 1 / 3, 2 / 3)
    right = draws[1] < np.where(second, 0.4, 0.8)
    pairs = [(mean_of(one), mean_of(other)) for one, other in zip(left, right, strict=True)]
    found = bootstrap_differences(pairs, paired, num_resamples=2000)
    share = np.mean([interval.low <= 0.1 <= interval.high for interval in found])
    assert 0.93 < share < 0.97
