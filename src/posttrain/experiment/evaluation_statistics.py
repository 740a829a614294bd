"""Shares and means of held-out results, each with a 95% interval; pass@k; and how far two models are apart.

What is drawn at random is the prompt, so the prompt is the unit of every interval: samples of one prompt are averaged
before they are counted.
"""

import math
from collections.abc import Sequence

import numpy as np

Z_95 = 1.959964  # quantile of the normal distribution that leaves 2.5% on either side


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927, without continuity correction).

    Args:
        successes: how many of the trials succeeded.
        trials: at least 1.

    Returns:
        lower and upper end, within 0 to 1.
    """
    share, z2 = successes / trials, Z_95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z_95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """A mean and its 95% interval by the normal approximation: mean ± z·s/√n, s the sample standard deviation.

    Args:
        values: one a prompt, at least one; a single one has an interval without width, as have equal ones.

    Returns:
        mean, lower and upper end.
    """
    number, mean = len(values), math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / max(1, number - 1)
    half = Z_95 * math.sqrt(variance / number)
    return mean, mean - half, mean + half


def with_interval(
    name: str, values: Sequence[float], low: float = -math.inf, high: float = math.inf
) -> dict[str, float]:
    """Metrics `name`, `name_low` and `name_high`: a mean over prompts and its interval.

    Args:
        name: of the metric.
        values: one a prompt.
        low: what no value can lie below; the interval ends there.
        high: what no value can lie above.
    """
    mean, lower, upper = mean_interval(values)
    return {name: mean, f"{name}_low": max(low, lower), f"{name}_high": min(high, upper)}


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """The chance that at least one of k samples is right, estimated without bias from more than k.

    1 - C(n - c, k) / C(n, k) of n samples with c right ones (arXiv 2107.03374, eq. 1).

    Args:
        num_samples: n, at least k.
        num_correct: c, of the n.
        k: at least 1.
    """
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def kl_metrics(name: str, ratios: Sequence[Sequence[np.ndarray]]) -> dict[str, float]:
    """The divergence KL(p ‖ q) of a model p from a model q, from samples of p.

    With d = log p(token) - log q(token), the sum of d over a completion is an unbiased estimate of the divergence of
    the distributions over completions; divided by the tokens it is the estimator k1, and e^-d - 1 + d the estimator k3
    (Schulman 2020, http://joschu.net/blog/kl-approx.html), which is never negative.

    Args:
        name: of the metrics.
        ratios: d of each token, an array a completion, a list of them a prompt.

    Returns:
        `name` a completion in nats with its interval, and `name_per_token`, `name_k3_per_token`: means over all tokens.
    """
    sums = [[float(d.sum(dtype=np.float64)) for d in of_prompt] for of_prompt in ratios]
    tokens = np.concatenate([d for of_prompt in ratios for d in of_prompt]).astype(np.float64)
    return {
        **with_interval(name, [math.fsum(of_prompt) / len(of_prompt) for of_prompt in sums]),
        f"{name}_per_token": float(tokens.mean()),
        f"{name}_k3_per_token": float((np.expm1(-tokens) + tokens).mean()),
    }


def share_above_zero(margins: Sequence[float]) -> float:
    """The share of pairs whose chosen answer wins; a tie is no win."""
    return sum(margin > 0 for margin in margins) / len(margins)
