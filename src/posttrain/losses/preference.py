"""Preference losses: functions of what policy and reference say of P pairs of completions.

Notation: c and r are the log-ratios of policy to reference of the chosen and the rejected completion, summed over
tokens; Δ = f'(c) - f'(r) with f the divergence that regularises (Δ = c - r for the reverse KL); σ is the logistic
function. A new loss is one function, one row in LOSSES, and its name among the choices of the flag.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from posttrain.losses import Loss, Term


@dataclass(frozen=True)
class PreferenceOptions:
    """Constants of the losses; the flags of the same names."""

    beta: float = 0.1
    label_smoothing: float = 0.0
    f_divergence_type: str = "reverse_kl"
    f_alpha_divergence_coef: float = 0.5
    discopop_tau: float = 0.05


@dataclass(frozen=True)
class Pairs:
    """What the losses see of P pairs. All (P,) float32.

    Args:
        chosen, rejected: log-ratios c and r.
        chosen_score, rejected_score: f' of the ratios; equal to c and r for the reverse KL.
        policy_margin, reference_margin: log-prob of chosen minus rejected under policy and reference.
        chosen_length, rejected_length: target tokens.
    """

    chosen: torch.Tensor
    rejected: torch.Tensor
    chosen_score: torch.Tensor
    rejected_score: torch.Tensor
    policy_margin: torch.Tensor
    reference_margin: torch.Tensor
    chosen_length: torch.Tensor
    rejected_length: torch.Tensor

    @property
    def delta(self) -> torch.Tensor:
        return self.chosen_score - self.rejected_score

    @property
    def delta_per_token(self) -> torch.Tensor:
        return self.chosen_score / self.chosen_length - self.rejected_score / self.rejected_length


def divergence_score(log_ratio: torch.Tensor, kind: str, alpha: float) -> torch.Tensor:
    """f'(t) at t = exp(log_ratio), for the f-divergence that regularises (arXiv 2309.16240, table 1).

    reverse_kl log t · forward_kl 1 - 1/t · js_divergence log(2t/(1 + t)) · alpha_divergence (t^(α-1) - 1)/(α - 1).
    Exponents are clamped at 80 so that float32 does not overflow.
    """
    if kind == "reverse_kl" or (kind == "alpha_divergence" and abs(alpha - 1.0) < 1e-6):
        return log_ratio
    if kind == "forward_kl":
        return 1 - torch.exp((-log_ratio).clamp(max=80.0))
    if kind == "js_divergence":
        return math.log(2.0) + logsigmoid(log_ratio)
    assert kind == "alpha_divergence", kind
    return torch.expm1(((alpha - 1.0) * log_ratio).clamp(max=80.0)) / (alpha - 1.0)


def _smoothed(logits: torch.Tensor, smoothing: float) -> torch.Tensor:
    return -(1 - smoothing) * logsigmoid(logits) - smoothing * logsigmoid(-logits)


def sigmoid(p: Pairs, o: PreferenceOptions) -> torch.Tensor:
    """DPO, -log σ(βΔ) (arXiv 2305.18290, eq. 7)."""
    return -logsigmoid(o.beta * p.delta)


def hinge(p: Pairs, o: PreferenceOptions) -> torch.Tensor:
    """SLiC, max(0, 1 - βΔ) (arXiv 2305.10425)."""
    return torch.relu(1 - o.beta * p.delta)


def ipo(p: Pairs, o: PreferenceOptions) -> torch.Tensor:
    """IPO, (Δ of per-token means - 1/(2β))² (arXiv 2310.12036, eq. 17)."""
    return (p.delta_per_token - 1 / (2 * o.beta)) ** 2


def sigmoid_norm(p: Pairs, o: PreferenceOptions) -> torch.Tensor:
    """-log σ(βΔ) of per-token means (length-normalised DPO, arXiv 2411.15124)."""
    return -logsigmoid(o.beta * p.delta_per_token)


def exo_pair(p: Pairs, o: PreferenceOptions) -> torch.Tensor:
    """EXO, KL from (σ(βΔ), σ(-βΔ)) to (1 - ε, ε) (arXiv 2402.00856, eq. 16); needs ε = label_smoothing > 0."""
    logits = o.beta * p.delta
    win = torch.sigmoid(logits) * (logsigmoid(logits) - math.log1p(-o.label_smoothing))
    lose = torch.sigmoid(-logits) * (logsigmoid(-logits) - math.log(o.label_smoothing))
    return win + lose


def robust(p: Pairs, o: PreferenceOptions) -> torch.Tensor:
    """Robust DPO, ((1 - ε)ℓ(Δ) - εℓ(-Δ))/(1 - 2ε) with ℓ = -log σ(β·) (arXiv 2403.00409, eq. 12)."""
    logits, e = o.beta * p.delta, o.label_smoothing
    return (-(1 - e) * logsigmoid(logits) + e * logsigmoid(-logits)) / (1 - 2 * e)


def nca_pair(p: Pairs, o: PreferenceOptions) -> torch.Tensor:
    """NCA, -log σ(βc) - ½ log σ(-βc) - ½ log σ(-βr) (arXiv 2402.05369, eq. 11)."""
    c, r = o.beta * p.chosen, o.beta * p.rejected
    return -logsigmoid(c) - 0.5 * logsigmoid(-c) - 0.5 * logsigmoid(-r)


def bco_pair(p: Pairs, o: PreferenceOptions) -> torch.Tensor:
    """BCO without its running mean, -log σ(βc) - log σ(-βr) (arXiv 2404.04656)."""
    return -logsigmoid(o.beta * p.chosen) - logsigmoid(-o.beta * p.rejected)


def sppo_hard(p: Pairs, o: PreferenceOptions) -> torch.Tensor:
    """SPPO with hard labels, (c - 1/(2β))² + (r + 1/(2β))² (arXiv 2405.00675, eq. 4.7)."""
    return (p.chosen - 0.5 / o.beta) ** 2 + (p.rejected + 0.5 / o.beta) ** 2


def aot(p: Pairs, o: PreferenceOptions) -> torch.Tensor:
    """AOT, paired: the sorted margins of policy and reference are compared (arXiv 2406.05882). The order is that of the
    micro-batch, so here, and only here, the loss depends on how a step is cut into micro-batches."""
    delta = p.policy_margin.sort().values - p.reference_margin.sort().values
    return _smoothed(o.beta * delta, o.label_smoothing)


def aot_unpaired(p: Pairs, o: PreferenceOptions) -> torch.Tensor:
    """AOT, unpaired: sorted c against sorted r (arXiv 2406.05882); within the micro-batch, as `aot`."""
    return _smoothed(o.beta * (p.chosen.sort().values - p.rejected.sort().values), o.label_smoothing)


def apo_zero(p: Pairs, o: PreferenceOptions) -> torch.Tensor:
    """APO-zero, 1 - σ(βc) + σ(βr) (arXiv 2408.06266, eq. 7)."""
    return 1 - torch.sigmoid(o.beta * p.chosen) + torch.sigmoid(o.beta * p.rejected)


def apo_down(p: Pairs, o: PreferenceOptions) -> torch.Tensor:
    """APO-down, σ(βc) + 1 - σ(β(c - r)) (arXiv 2408.06266, eq. 8)."""
    return torch.sigmoid(o.beta * p.chosen) + 1 - torch.sigmoid(o.beta * (p.chosen - p.rejected))


def discopop(p: Pairs, o: PreferenceOptions) -> torch.Tensor:
    """DiscoPOP: logistic and exponential loss of βΔ, blended by σ(βΔ/τ) (arXiv 2406.08414, eq. 5)."""
    logits = o.beta * p.delta
    blend = torch.sigmoid(logits / o.discopop_tau)
    return -logsigmoid(logits) * (1 - blend) + torch.exp(-logits) * blend


LOSSES: dict[str, Callable[[Pairs, PreferenceOptions], torch.Tensor]] = {
    loss.__name__: loss
    for loss in (
        sigmoid,
        hinge,
        ipo,
        sigmoid_norm,
        exo_pair,
        robust,
        nca_pair,
        bco_pair,
        sppo_hard,
        aot,
        aot_unpaired,
        apo_zero,
        apo_down,
        discopop,
    )
}


def sequence_sums(values: torch.Tensor, sequence_ids: torch.Tensor, num_pairs: int) -> torch.Tensor:
    """Sums over the targets of each sequence. (N,), (N,) → (P, 2): chosen, rejected."""
    sums = torch.zeros(2 * num_pairs, dtype=values.dtype, device=values.device)
    return sums.index_add(0, sequence_ids, values).view(num_pairs, 2)


def length_desensitised(sequence_ids: torch.Tensor, num_pairs: int, ld_alpha: float) -> torch.Tensor:
    """Weights of the targets in LD-DPO (arXiv 2409.06411, eq. 11): 1 up to the shorter completion's length, ld_alpha
    beyond it. (N,) → (N,); sequence_ids are sorted."""
    lengths = sequence_sums(torch.ones_like(sequence_ids), sequence_ids, num_pairs).flatten()
    offset = torch.arange(len(sequence_ids), device=sequence_ids.device) - (lengths.cumsum(0) - lengths)[sequence_ids]
    shared = lengths.view(num_pairs, 2).amin(1).repeat_interleave(2)[sequence_ids]
    return torch.where(offset < shared, 1.0, ld_alpha)


def pair_weights(
    logprobs: torch.Tensor, log_collision: torch.Tensor, sequence_ids: torch.Tensor, num_pairs: int
) -> torch.Tensor:
    """Weights of pairs in WPO (arXiv 2406.11827, eq. 2 with the aligned weights of §3.2): the product over the two
    completions of exp(mean over tokens of log p - log Σ p²). (N,), (N,) → (P,), no gradient."""
    aligned = sequence_sums((logprobs - log_collision).detach(), sequence_ids, num_pairs)
    lengths = sequence_sums(torch.ones_like(logprobs), sequence_ids, num_pairs).clamp(min=1)
    return (aligned / lengths).sum(1).exp()


def preference_loss(
    logprobs: torch.Tensor,
    reference_logprobs: torch.Tensor,
    sequence_ids: torch.Tensor,
    num_pairs: int,
    loss_types: list[str],
    loss_weights: list[float],
    options: PreferenceOptions,
    ld_alpha: float | None = None,
    log_collision: torch.Tensor | None = None,
) -> Loss:
    """Weighted sum of preference losses over P pairs, and the metrics that go with it.

    Args:
        logprobs: (N,) of the targets under the policy.
        reference_logprobs: (N,) under the reference.
        sequence_ids: (N,) sorted; 2p is the chosen, 2p + 1 the rejected completion of pair p.
        num_pairs: P.
        loss_types: names in LOSSES, or "sft": the negative log-likelihood of the chosen completions' tokens.
        loss_weights: one a name.
        options: constants of the losses.
        ld_alpha: weight of the tokens beyond the shorter completion's length; None for 1.
        log_collision: (N,) log Σ p² of each predicted distribution; given, pairs are weighted as in WPO.
    """
    ones = torch.ones_like(logprobs)
    token_weights = ones if ld_alpha is None else length_desensitised(sequence_ids, num_pairs, ld_alpha)
    policy = sequence_sums(logprobs * token_weights, sequence_ids, num_pairs)
    reference = sequence_sums(reference_logprobs * token_weights, sequence_ids, num_pairs)
    lengths = sequence_sums(ones, sequence_ids, num_pairs).clamp(min=1)
    ratios = policy - reference
    scores = divergence_score(ratios, options.f_divergence_type, options.f_alpha_divergence_coef)
    pairs = Pairs(
        chosen=ratios[:, 0],
        rejected=ratios[:, 1],
        chosen_score=scores[:, 0],
        rejected_score=scores[:, 1],
        policy_margin=policy[:, 0] - policy[:, 1],
        reference_margin=reference[:, 0] - reference[:, 1],
        chosen_length=lengths[:, 0],
        rejected_length=lengths[:, 1],
    )
    weights = torch.ones_like(pairs.chosen)
    if log_collision is not None:
        weights = pair_weights(logprobs, log_collision, sequence_ids, num_pairs)
    terms = []
    for name, coefficient in zip(loss_types, loss_weights, strict=True):
        if name == "sft":
            is_chosen = sequence_ids % 2 == 0
            token_loss = -logprobs * is_chosen * weights[sequence_ids // 2]
            terms.append(Term(token_loss.sum(), "chosen_targets", coefficient))
        else:
            terms.append(Term((LOSSES[name](pairs, options) * weights).sum(), "groups", coefficient))
    rewards = options.beta * ratios.detach()
    margins = rewards[:, 0] - rewards[:, 1]
    count = float(num_pairs)
    metrics: dict[str, tuple[torch.Tensor, float | torch.Tensor]] = {
        "rewards/chosen": (rewards[:, 0].sum(), count),
        "rewards/rejected": (rewards[:, 1].sum(), count),
        "rewards/accuracies": ((margins > 0).float().sum(), count),
        "rewards/margins": (margins.sum(), count),
        "logps/chosen": (policy[:, 0].detach().sum(), count),
        "logps/rejected": (policy[:, 1].detach().sum(), count),
    }
    return Loss(tuple(terms), metrics)
