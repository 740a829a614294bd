"""The loss of reward models, and how well their scores predict which completion of a pair is better."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from posttrain.losses import Loss, Term

# Bins of equal width, of the confidence from 0.5 to 1, that the calibration error is taken over.
NUM_BINS = 10


def reward_loss(
    scores: torch.Tensor, margins: torch.Tensor | None = None, center_rewards_coefficient: float | None = None
) -> Loss:
    """Bradley-Terry: mean over the P pairs of -log σ(r_c - r_r - m) (arXiv 2203.02155, eq. 1; the margin m: arXiv
    2307.09288, eq. 2), plus a coefficient times the mean of (r_c + r_r)², which keeps rewards around zero
    (arXiv 2312.09244).

    Metrics, all of scores r alone, without m: {min,mean,max}_reward over all completions; accuracy, the share of pairs
    with r_c > r_r; margin, the mean of r_c - r_r; and with p = σ(r_c - r_r), the probability that the model gives to
    what the rows say, brier_score, the mean of (1 - p)², and what `calibration_error` is made of.

    Args:
        scores: (2P,) float32; 2p is the chosen, 2p + 1 the rejected completion of pair p.
        margins: (P,) m; None for 0.
        center_rewards_coefficient: None for 0.
    """
    chosen, rejected = scores.view(-1, 2).unbind(1)
    difference = chosen - rejected
    terms = [Term(-logsigmoid(difference if margins is None else difference - margins).sum(), "groups")]
    if center_rewards_coefficient is not None:
        terms.append(Term((chosen + rejected).square().sum(), "groups", center_rewards_coefficient))
    difference, scores = difference.detach(), scores.detach()
    count = float(len(difference))
    metrics: dict[str, tuple[torch.Tensor, float | torch.Tensor]] = {
        "mean_reward": (scores.sum(), 2 * count),
        "accuracy": ((difference > 0).float().sum(), count),
        "margin": (difference.sum(), count),
        "brier_score": (torch.sigmoid(-difference).square().sum(), count),
    }
    gaps = confidence_gaps(difference)
    metrics.update({f"{_GAP}{number}": (gap, count) for number, gap in enumerate(gaps.unbind())})
    return Loss(tuple(terms), metrics, minima={"min_reward": scores.min()}, maxima={"max_reward": scores.max()})


_GAP = "calibration_gap/"


def confidence_gaps(difference: torch.Tensor) -> torch.Tensor:
    """Sums over the pairs of each bin of confidence: confidence, minus 1 where the better one was scored higher.

    A pair's confidence is σ(|r_c - r_r|), the probability of the completion that is scored higher. (P,) → (NUM_BINS,).
    """
    confidence = torch.sigmoid(difference.abs())
    bins = ((confidence - 0.5) * (2 * NUM_BINS)).long().clamp(max=NUM_BINS - 1)
    return torch.zeros(NUM_BINS, device=difference.device).index_add(0, bins, confidence - (difference > 0).float())


def with_calibration_error(values: dict[str, float]) -> dict[str, float]:
    """Puts `calibration_error` in the place of the bins' gaps: the expected calibration error, Σ over bins of
    (pairs in the bin / all pairs) · |mean confidence - accuracy| (arXiv 1706.04599, eq. 3). The gaps come as sums over
    a bin divided by all pairs, so it is the sum of their sizes, over however many batches and processes.

    Args:
        values: metrics as ratios.
    """
    gaps = [abs(value) for name, value in values.items() if name.startswith(_GAP)]
    if not gaps:
        return values
    others = {name: value for name, value in values.items() if not name.startswith(_GAP)}
    return others | {"calibration_error": sum(gaps)}
