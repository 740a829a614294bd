"""GRPO's family of losses: functions of what the policy says of N target tokens of C sampled completions.

Notation: ρ = π(token)/π_old(token) is the importance ratio, of a token or (level "sequence") the geometric mean over a
completion's tokens, as in GSPO (arXiv 2507.18071, eq. 7); A is the completion's advantage. A new loss is one function,
one row in LOSSES, and its name among the choices of the flag.

The advantages come from `posttrain.losses.advantages`. Completions that are to be left out, as truncated ones may be,
have no targets; they still count among the sequences, as in TRL.

Where it departs from TRL, whose names and constants these are:
- Every mean is over the whole optimizer step, so that no cut into micro-batches and ranks changes it. There, `bnpo`
  (over tokens) and the entropy bonus are means of the micro-batches' means: here `bnpo` is `dapo`. `grpo`, `sapo`,
  `luspo` and `dr_grpo` are that too, which shows only where micro-batches have unequal numbers of sequences.
- clip_ratio/low_min and high_max are means, over micro-batches, of their minima and maxima; there, of those over all
  ranks' micro-batches of a time. These two metrics, and nothing else, depend on how a step is cut.
- `entropy_coef` is logged as applied in the step; there as it will be in the next, and also while it is not applied.
- Ratios stop growing at e^20 (`ratios.MAX_LOG_RATIO`).
- `kl_estimator` is a choice; there it is k3.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from posttrain.losses import Loss, Term
from posttrain.losses.ratios import Metrics, clip_metrics, exp_bounded, kl_estimates, log_ratios, sums_by_sequence
from posttrain.losses.sampler_correction import CorrectionOptions, sampler_correction


@dataclass(frozen=True)
class PolicyOptions:
    """Constants of the losses; the flags of the same names."""

    loss_type: str = "dapo"
    importance_sampling_level: str = "token"
    epsilon: float = 0.2
    epsilon_high: float | None = None
    delta: float | None = None
    beta: float = 0.0
    use_bias_correction_kl: bool = True
    kl_estimator: str = "k3"
    max_completion_length: int = 256
    off_policy_mask_threshold: float | None = None
    sapo_temperature_pos: float = 1.0
    sapo_temperature_neg: float = 1.05
    vespo_k_pos: float = 2.0
    vespo_lambda_pos: float = 3.0
    vespo_k_neg: float = 3.0
    vespo_lambda_neg: float = 2.0

    @property
    def upper_epsilon(self) -> float:
        return self.epsilon if self.epsilon_high is None else self.epsilon_high


@dataclass(frozen=True)
class Targets:
    """What the losses see. M is N where ratios are of tokens, C where they are of sequences.

    Args:
        logprobs: (N,) under the policy, with gradient.
        log_ratio: (N,) log ρ of each token, with gradient.
        sequence_ids: (N,) which of the C sequences a target belongs to.
        ratio: (M,) ρ at the level of importance sampling, with gradient.
        ratio_sequence_ids: (M,) which sequence a ratio belongs to.
        advantages: (C,) A of each completion.
        log_correction: (C,) log of what a whole completion weighs for having been sampled by another engine; None = by
            this one.
    """

    logprobs: torch.Tensor
    log_ratio: torch.Tensor
    sequence_ids: torch.Tensor
    ratio: torch.Tensor
    ratio_sequence_ids: torch.Tensor
    advantages: torch.Tensor
    log_correction: torch.Tensor | None = None

    @property
    def num_sequences(self) -> int:
        return self.advantages.shape[0]

    @property
    def ratio_advantages(self) -> torch.Tensor:
        """A of each ratio; (M,)."""
        return self.advantages[self.ratio_sequence_ids]

    def by_token(self, values: torch.Tensor) -> torch.Tensor:
        """(M,) → (N,)."""
        return values if self.ratio_sequence_ids is self.sequence_ids else values[self.sequence_ids]


TokenLoss = tuple[torch.Tensor, Metrics]


def clipped(t: Targets, o: PolicyOptions) -> TokenLoss:
    """-min(ρA, clip(ρ, 1 - ε, 1 + ε_high)·A) (PPO, arXiv 1707.06347, eq. 7; ε_high: DAPO, arXiv 2503.14476, eq. 8).
    With δ, ρ itself is bounded by δ from above, which bounds the loss for A < 0 too (INTELLECT-2, arXiv 2505.07291)."""
    advantages = t.ratio_advantages
    inner = t.ratio.clamp(1 - o.epsilon, 1 + o.upper_epsilon)
    outer = t.ratio if o.delta is None else t.ratio.clamp(max=o.delta)
    loss = -torch.minimum(outer * advantages, inner * advantages)
    metrics = clip_metrics(outer, advantages, t.ratio_sequence_ids, t.num_sequences, o.epsilon, o.upper_epsilon)
    return t.by_token(loss), metrics


def cispo(t: Targets, o: PolicyOptions) -> TokenLoss:
    """-sg(min(ρ, ε_high))·A·log π: the weight is clipped, and no token loses its gradient (MiniMax-M1, arXiv
    2506.13585, eq. 4; as ε_max in ScaleRL, arXiv 2510.13786, an upper bound alone, and of ρ, not of ρ - 1)."""
    advantages = t.ratio_advantages
    weight = t.ratio.detach().clamp(max=o.upper_epsilon)
    is_clipped = ((t.ratio.detach() > o.upper_epsilon) & (advantages > 0)).float()
    metrics: Metrics = {"cispo_clip_ratio": (is_clipped.sum(), float(is_clipped.shape[0]))}
    return -t.by_token(weight * advantages) * t.logprobs, metrics


def sapo(t: Targets, o: PolicyOptions) -> TokenLoss:
    """-(4/τ)·σ(τ(ρ - 1))·A, a soft gate in place of the clip; τ by the sign of A (arXiv 2511.20347)."""
    advantages = t.ratio_advantages
    tau = torch.where(advantages > 0, o.sapo_temperature_pos, o.sapo_temperature_neg)
    return t.by_token(-torch.sigmoid(tau * (t.ratio - 1)) * (4 / tau) * advantages), {}


def vespo(t: Targets, o: PolicyOptions) -> TokenLoss:
    """-sg(φ(w))·A·log π, with w = Π ρ over the sequence's tokens and φ(w) = w^k·exp(λ(1 - w)), so that φ(1) = 1; k and
    λ by the sign of A (arXiv 2602.10693). log w is held between log 1e-8 and 20. A correction for another sampler is a
    factor of w."""
    log_w = sums_by_sequence(t.log_ratio.detach().clamp(-20, 20), t.sequence_ids, t.num_sequences)
    if t.log_correction is not None:
        log_w = log_w + t.log_correction.clamp(math.log(1e-8), 20)
    log_w = log_w.clamp(math.log(1e-8), 20)
    is_good = t.advantages >= 0
    k = torch.where(is_good, o.vespo_k_pos, o.vespo_k_neg)
    rate = torch.where(is_good, o.vespo_lambda_pos, o.vespo_lambda_neg)
    phi = torch.exp(k * log_w + rate * (1 - log_w.exp()))
    metrics: Metrics = {"vespo/phi_seq_mean": (phi.sum(), float(t.num_sequences))}
    return -(phi * t.advantages)[t.sequence_ids] * t.logprobs, metrics


@dataclass(frozen=True)
class LossType:
    """A loss of a token, and how tokens come together.

    Args:
        token_loss: → (N,) losses, and metrics of its own.
        divide_by: weight that the sum is divided by, one of `policy_weights`.
        mean_of_sequence: whether a sequence counts by the mean over its tokens, and not by their sum.
        weighs_itself: whether token_loss takes care of log_correction.
    """

    token_loss: Callable[[Targets, PolicyOptions], TokenLoss]
    divide_by: str
    mean_of_sequence: bool = False
    weighs_itself: bool = False


LOSSES: dict[str, LossType] = {
    "grpo": LossType(clipped, "sequences", mean_of_sequence=True),  # DeepSeekMath, arXiv 2402.03300, eq. 3
    "bnpo": LossType(clipped, "targets"),
    "dr_grpo": LossType(clipped, "budget"),  # Dr. GRPO, arXiv 2503.20783
    "dapo": LossType(clipped, "targets"),  # DAPO, arXiv 2503.14476, eq. 8
    "cispo": LossType(cispo, "targets"),
    "sapo": LossType(sapo, "sequences", mean_of_sequence=True),
    "vespo": LossType(vespo, "targets", weighs_itself=True),
    "luspo": LossType(clipped, "sequences"),  # LUSPO, arXiv 2602.05261
}


def policy_weights(
    num_targets: int, num_sequences: int, options: PolicyOptions, entropy_mask: torch.Tensor | None = None
) -> dict[str, int]:
    """What the terms of `policy_loss` are divided by, of one batch; those of a step's batches are added up.

    Returns:
        "targets", "sequences", "budget" (the tokens that the sequences might have had) and "selected_targets" (those
        that `entropy_mask` lets through, all without one).
    """
    return {
        "targets": num_targets,
        "sequences": num_sequences,
        "budget": num_sequences * options.max_completion_length,
        "selected_targets": num_targets if entropy_mask is None else int(entropy_mask.sum()),
    }


def off_policy_mask(
    log_ratio: torch.Tensor, sequence_ids: torch.Tensor, advantages: torch.Tensor, threshold: float
) -> torch.Tensor:
    """0 for completions with a negative advantage whose mean of log π_old - log π exceeds the threshold, 1 for others
    (DeepSeek-V3.2, arXiv 2512.02556, eq. 9). (N,), (N,), (C,) → (C,)."""
    drift = -_means_by_sequence(log_ratio.detach(), sequence_ids, advantages.shape[0])
    return ((advantages >= 0) | (drift <= threshold)).float()


def _means_by_sequence(values: torch.Tensor, sequence_ids: torch.Tensor, num_sequences: int) -> torch.Tensor:
    lengths = sums_by_sequence(torch.ones_like(values), sequence_ids, num_sequences)
    return sums_by_sequence(values, sequence_ids, num_sequences) / lengths.clamp(min=1)


def _targets(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor | None,
    sequence_ids: torch.Tensor,
    advantages: torch.Tensor,
    level: str,
) -> Targets:
    log_ratio = log_ratios(logprobs, old_logprobs)
    if level == "token":
        return Targets(logprobs, log_ratio, sequence_ids, exp_bounded(log_ratio), sequence_ids, advantages)
    assert level == "sequence", level
    ratio = exp_bounded(_means_by_sequence(log_ratio, sequence_ids, advantages.shape[0]))
    each = torch.arange(advantages.shape[0], device=advantages.device)
    return Targets(logprobs, log_ratio, sequence_ids, ratio, each, advantages)


def policy_loss(
    logprobs: torch.Tensor,
    entropy: torch.Tensor,
    sequence_ids: torch.Tensor,
    advantages: torch.Tensor,
    options: PolicyOptions,
    old_logprobs: torch.Tensor | None = None,
    reference_logprobs: torch.Tensor | None = None,
    entropy_mask: torch.Tensor | None = None,
    entropy_coef: float | None = None,
    sampler_log_ratio: torch.Tensor | None = None,
    correction: CorrectionOptions | None = None,
) -> Loss:
    """Policy gradient, KL to the reference with the factor beta, and entropy bonus.

    Args:
        logprobs: (N,) of the targets under the policy.
        entropy: (N,) of the predicted distributions, in nats; with gradient if there is a bonus.
        sequence_ids: (N,) which of the C sequences a target belongs to.
        advantages: (C,).
        options: constants of the losses.
        old_logprobs: (N,) when the completions were sampled; None = exactly on-policy, all ratios 1.
        reference_logprobs: (N,) under the reference; needed where beta is not 0.
        entropy_mask: (N,) 1 = counts in policy gradient and entropy bonus (`entropy.top_entropy_mask`); None = all do.
            The KL is that of all tokens.
        entropy_coef: factor of the mean entropy that is taken from the loss; None = no bonus.
        sampler_log_ratio: (N,) log π_old - log π_sampler, where another engine with the same weights has sampled; None:
            none has.
        correction: how the policy gradient is weighed then; needed with sampler_log_ratio. The KL is not weighed.

    Returns:
        Terms divided by `policy_weights`; metrics entropy, kl, policy_loss, entropy_coef, those of the loss type and
        those of the correction.
    """
    num_targets, num_sequences = logprobs.shape[0], advantages.shape[0]
    loss_type = LOSSES[options.loss_type]
    targets = _targets(logprobs, old_logprobs, sequence_ids, advantages, options.importance_sampling_level)
    weights = None
    if sampler_log_ratio is not None:
        assert correction is not None
        weights = sampler_correction(sampler_log_ratio, sequence_ids, num_sequences, correction)
        targets = dataclasses.replace(targets, log_correction=weights.log_by_sequence)
    token_loss, metrics = loss_type.token_loss(targets, options)
    if options.off_policy_mask_threshold is not None:  # from what has really sampled
        drift = targets.log_ratio if sampler_log_ratio is None else targets.log_ratio + sampler_log_ratio
        kept = off_policy_mask(drift, sequence_ids, advantages, options.off_policy_mask_threshold)
        token_loss = token_loss * kept[sequence_ids]
    if entropy_mask is not None:
        token_loss = token_loss * entropy_mask
    if weights is not None and not loss_type.weighs_itself:
        token_loss = token_loss * weights.by_token
    shares = torch.ones_like(logprobs)
    if loss_type.mean_of_sequence:
        shares = 1 / sums_by_sequence(shares, sequence_ids, num_sequences)[sequence_ids]
    terms = [Term((token_loss * shares).sum(), loss_type.divide_by)]
    metrics["entropy"] = (entropy.detach().sum(), float(num_targets))
    if options.beta:
        assert reference_logprobs is not None
        kl = kl_estimates(logprobs, reference_logprobs, options.kl_estimator)
        if options.use_bias_correction_kl:  # DeepSeek-V3.2, arXiv 2512.02556: the ratio takes part in the gradient
            kl = kl * targets.by_token(targets.ratio)
        terms.append(Term((kl * shares).sum(), loss_type.divide_by, options.beta))
        metrics["kl"] = (kl.detach().sum(), float(num_targets))
    if entropy_coef is not None:
        divisors = policy_weights(num_targets, num_sequences, options)
        value = torch.stack([term.sum.detach() * term.coefficient for term in terms]).sum()
        metrics["policy_loss"] = (value, float(divisors[loss_type.divide_by]))
        metrics["entropy_coef"] = (torch.tensor(entropy_coef, device=logprobs.device), 1.0)
        bonus = entropy if entropy_mask is None else entropy * entropy_mask
        terms.append(Term(bonus.sum(), "selected_targets", -entropy_coef))
    if weights is not None:
        return Loss(tuple(terms), metrics | weights.metrics, weights.minima, weights.maxima)
    return Loss(tuple(terms), metrics)
