"""How sure a difference between two experiments is: 95% intervals over held-out rows, and over seeds.

Over rows, by the bootstrap (Efron and Tibshirani 1993, An Introduction to the Bootstrap, sections 8.3 and 13.3): rows
are drawn again with replacement, the figure is computed from each draw, and the interval reaches from its quantile of
2.5% to that of 97.5%. Paired, as both models answered the same rows (Koehn 2004, Statistical Significance Tests for
Machine Translation Evaluation, section 3): each draw takes the same rows of both, so what makes a row hard for both
cancels.

Over seeds, of which there are a few, by Student's t (Student 1908); Welch's (1947) where the seeds are not the same.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

NUM_RESAMPLES = 10_000
LEAST_ROWS = 10  # of fewer, draws are so alike that the interval would be far too narrow
_BLOCK = 4_000_000  # numbers of draws that are held at a time
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


class Rows(NamedTuple):
    """A figure as sums over rows: Σ numerators / Σ denominators. Of a mean, the denominators are 1.

    Args:
        numerators: (rows,)
        denominators: (rows,)
    """

    numerators: np.ndarray
    denominators: np.ndarray

    @property
    def value(self) -> float:
        return float(self.numerators.sum() / self.denominators.sum())


class Interval(NamedTuple):
    """A difference and the ends of its 95% interval."""

    difference: float
    low: float
    high: float


def bootstrap_differences(
    pairs: Sequence[tuple[Rows, Rows]], paired: bool, num_resamples: int = NUM_RESAMPLES
) -> list[Interval]:
    """The differences right - left of several figures over the same rows.

    Args:
        pairs: left and right of each figure; all left sides have the same rows, as have all right sides.
        paired: row i of both sides is the same row.
        num_resamples: draws.

    Returns:
        an interval a figure; the same from call to call, since the draws come from a fixed seed.
    """
    estimates = [_estimates([sides[side] for sides in pairs], 0 if paired else side, num_resamples) for side in (0, 1)]
    lows, highs = np.quantile(estimates[1] - estimates[0], [0.025, 0.975], axis=0)
    return [
        Interval(right.value - left.value, float(low), float(high))
        for (left, right), low, high in zip(pairs, lows, highs, strict=True)
    ]


def _estimates(figures: Sequence[Rows], seed: int, num_resamples: int) -> np.ndarray:
    """The figures of each draw, (num_resamples, figures)."""
    numerators = np.stack([rows.numerators for rows in figures], axis=1).astype(np.float64)
    denominators = np.stack([rows.denominators for rows in figures], axis=1).astype(np.float64)
    return np.concatenate(
        [(counts @ numerators) / (counts @ denominators) for counts in _draws(len(numerators), seed, num_resamples)]
    )


def _draws(num_rows: int, seed: int, num_resamples: int) -> Iterator[np.ndarray]:
    """How often each draw takes each row, a block of draws at a time: (draws, num_rows)."""
    generator = np.random.default_rng(seed)
    size = max(1, _BLOCK // num_rows)
    for start in range(0, num_resamples, size):
        number = min(size, num_resamples - start)
        rows = generator.integers(num_rows, size=(number, num_rows))
        places = rows + num_rows * np.arange(number)[:, None]
        counts = np.bincount(places.ravel(), minlength=number * num_rows)
        yield counts.reshape(number, num_rows).astype(np.float64)


def paired_t(left: Sequence[float], right: Sequence[float]) -> Interval:
    """The mean of right - left over pairs, ± t(n - 1)·s/√n with s the sample standard deviation of the differences.

    Args:
        left: one a seed, at least two.
        right: of the same seeds.
    """
    differences = [after - before for before, after in zip(left, right, strict=True)]
    mean, variance = _mean_and_variance(differences)
    half = t_quantile(len(differences) - 1) * math.sqrt(variance / len(differences))
    return Interval(mean, mean - half, mean + half)


def welch_t(left: Sequence[float], right: Sequence[float]) -> Interval:
    """The difference of two means, ± t(ν)·√(s₁²/n₁ + s₂²/n₂), with Welch's (1947) number of degrees of freedom
    ν = (s₁²/n₁ + s₂²/n₂)² / ((s₁²/n₁)²/(n₁ - 1) + (s₂²/n₂)²/(n₂ - 1)).

    Args:
        left: one a seed, at least two.
        right: of other seeds, at least two.
    """
    (first, s1), (second, s2) = _mean_and_variance(left), _mean_and_variance(right)
    shares = [s1 / len(left), s2 / len(right)]
    if sum(shares) == 0:
        return Interval(second - first, second - first, second - first)
    below = shares[0] ** 2 / (len(left) - 1) + shares[1] ** 2 / (len(right) - 1)
    half = t_quantile(sum(shares) ** 2 / below) * math.sqrt(sum(shares))
    return Interval(second - first, second - first - half, second - first + half)


def mean_and_half_width(values: Sequence[float]) -> tuple[float, float]:
    """A mean over seeds and half of its 95% interval, t(n - 1)·s/√n; NaN of a single one.

    Args:
        values: one a seed.
    """
    mean, variance = _mean_and_variance(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, t_quantile(len(values) - 1) * math.sqrt(variance / len(values))


def _mean_and_variance(values: Sequence[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)


@functools.cache
def t_quantile(degrees: float) -> float:
    """The quantile of 97.5% of Student's t distribution.

    With x = √ν·tan θ its density becomes one of cos^(ν-1) θ on ±π/2; the angle that holds 95% is found by halving.

    Args:
        degrees: of freedom, ν; at least 1, not needed whole.
    """
    norm = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        nodes = angle / 2 * (1 + _NODES)
        share = norm * angle / 2 * float(_WEIGHTS @ np.cos(nodes) ** (degrees - 1))
        low, high = (angle, high) if share < 0.475 else (low, angle)
    return math.sqrt(degrees) * math.tan(low)
