"""How two measurements go together: correlations, the area under a ROC curve with its interval, reliability by bins."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from posttrain.experiment.evaluation_statistics import Z_95

NUM_BINS = 10  # of the confidence from 0.5 to 1, as for the reward model's own calibration_error


def pearson(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Pearson's correlation; None where one of the two is the same everywhere.

    Args:
        first: (n,) values.
        second: (n,) values.
    """
    one, other = (np.asarray(values, np.float64) - np.mean(values) for values in (first, second))
    scale = math.sqrt(float(one @ one) * float(other @ other))
    return float(one @ other) / scale if scale > 0 else None


def ranks(values: Sequence[float]) -> np.ndarray:
    """The rank of each value from 1; equal ones share the mean of theirs. (n,) → (n,) float64."""
    _, inverse, counts = np.unique(np.asarray(values, np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's correlation: Pearson's of the ranks; None where one of the two is the same everywhere."""
    return pearson(ranks(first).tolist(), ranks(second).tolist())


class Estimate(NamedTuple):
    """A value and its 95% interval."""

    value: float
    low: float
    high: float


def roc_auc(scores: Sequence[float], labels: Sequence[bool]) -> Estimate | None:
    """The chance that a true item scores higher than a false one, a tie counted half, with DeLong's interval.

    With V_i the share of false items that true item i beats, and W_j the share of true items that beat false item j,
    AUC is the mean of V, and its variance s²(V)/m + s²(W)/n (DeLong, DeLong and Clarke-Pearson 1988), computed from
    ranks (Sun and Xu 2014).

    Args:
        scores: one an item.
        labels: whether it is a true one.

    Returns:
        the area within 0 to 1; None where there are fewer than two true or two false items.
    """
    values, is_true = np.asarray(scores, np.float64), np.asarray(labels, bool)
    true, false = values[is_true], values[~is_true]
    m, n = len(true), len(false)
    if min(m, n) < 2:
        return None
    joint = ranks(np.concatenate([true, false]).tolist())
    wins = (joint[:m] - ranks(true.tolist())) / n
    losses = 1 - (joint[m:] - ranks(false.tolist())) / m
    area = float(wins.mean())
    half = Z_95 * math.sqrt(float(wins.var(ddof=1)) / m + float(losses.var(ddof=1)) / n)
    return Estimate(area, max(0.0, area - half), min(1.0, area + half))


class Bin(NamedTuple):
    """Pairs that the reward model is about equally sure of.

    Args:
        low: the least confidence; the bin ends where the next one begins.
        num_pairs: how many.
        confidence: its mean, 0.5 to 1.
        accuracy: share of the pairs whose better answer scored higher.
    """

    low: float
    num_pairs: int
    confidence: float
    accuracy: float


def reliability(margins: Sequence[float]) -> list[Bin]:
    """What came true of a Bradley-Terry model's probabilities, by bins of its confidence σ(|margin|).

    Args:
        margins: score of the better answer minus that of the worse one, each.

    Returns:
        the bins that hold pairs.
    """
    sizes = np.abs(np.asarray(margins, np.float64))
    confidence = 1 / (1 + np.exp(-sizes))
    is_right = np.asarray(margins, np.float64) > 0
    index = np.minimum(((confidence - 0.5) * 2 * NUM_BINS).astype(int), NUM_BINS - 1)
    bins = []
    for number in range(NUM_BINS):
        inside = index == number
        if inside.any():
            low = 0.5 + number / (2 * NUM_BINS)
            bins.append(Bin(low, int(inside.sum()), float(confidence[inside].mean()), float(is_right[inside].mean())))
    return bins


def calibration_error(bins: Sequence[Bin]) -> float:
    """Σ over bins of (pairs in the bin / all pairs) · |mean confidence - accuracy| (arXiv 1706.04599, eq. 3)."""
    total = sum(each.num_pairs for each in bins)
    return sum(each.num_pairs * abs(each.confidence - each.accuracy) for each in bins) / total
