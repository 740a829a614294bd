"""What must be equal in the losses of GRPO's family and RLOO: cuts of a batch, losses where their differences vanish;
and what must stay finite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from posttrain.losses import Loss
from posttrain.losses.leave_one_out import leave_one_out_loss
from posttrain.losses.policy import LOSSES, PolicyOptions, policy_loss

LEVELS = ("token", "sequence")
DEPEND_ON_THE_CUT = {"clip_ratio/low_min", "clip_ratio/high_max"}


@dataclass
class Completions:
    """Log-probs and all else of completions of the given lengths, a little off-policy."""

    lengths: list[int]
    seed: int = 0

    def __post_init__(self) -> None:
        draw = torch.Generator().manual_seed(self.seed)
        num_targets, self.num_sequences = sum(self.lengths), len(self.lengths)
        self.sequence_ids = torch.arange(self.num_sequences).repeat_interleave(torch.tensor(self.lengths))
        self.logprobs = -3 * torch.rand(num_targets, generator=draw, dtype=torch.float64)
        self.old = self.logprobs + 0.4 * torch.randn(num_targets, generator=draw, dtype=torch.float64)
        self.reference = self.logprobs + 0.4 * torch.randn(num_targets, generator=draw, dtype=torch.float64)
        self.entropy = torch.rand(num_targets, generator=draw, dtype=torch.float64)
        self.mask = (self.entropy > 0.3).double()
        self.advantages = torch.randn(self.num_sequences, generator=draw, dtype=torch.float64)
        self.logprobs.requires_grad_()

    def part(self, first: int, last: int) -> tuple[torch.Tensor, slice]:
        """Targets of the sequences from `first` to `last`."""
        kept = (self.sequence_ids >= first) & (self.sequence_ids < last)
        return kept, slice(first, last)

    def loss(self, first: int = 0, last: int | None = None, on_policy: bool = False, **settings: Any) -> Loss:
        kept, sequences = self.part(first, self.num_sequences if last is None else last)
        return policy_loss(
            self.logprobs[kept],
            self.entropy[kept],
            self.sequence_ids[kept] - first,
            self.advantages[sequences],
            PolicyOptions(**settings),
            None if on_policy else self.old[kept],
            self.reference[kept],
            self.mask[kept],
            entropy_coef=0.01,
        )

    def leave_one_out(self, first: int = 0, last: int | None = None) -> Loss:
        kept, sequences = self.part(first, self.num_sequences if last is None else last)
        ids = self.sequence_ids[kept] - first
        return leave_one_out_loss(
            self.logprobs[kept], self.entropy[kept], ids, self.advantages[sequences], self.old[kept]
        )

    def gradient(self, loss: Loss, **weights: float) -> torch.Tensor:
        """Of the terms, each over its weight, 1 unless given."""
        parts = [term.sum * term.coefficient / weights.get(term.divide_by, 1.0) for term in loss.terms]
        (result,) = torch.autograd.grad(torch.stack(parts).sum(), self.logprobs)
        return result


def assert_adds_up(whole: Loss, halves: list[Loss]) -> None:
    for term, *parts in zip(whole.terms, *(half.terms for half in halves), strict=True):
        assert torch.allclose(term.sum, torch.stack([part.sum for part in parts]).sum())
        assert {(part.divide_by, part.coefficient) for part in parts} == {(term.divide_by, term.coefficient)}
    for name in whole.metrics.keys() - DEPEND_ON_THE_CUT - {"entropy_coef"}:
        for place in (0, 1):
            parts = [torch.as_tensor(half.metrics[name][place]).double() for half in halves]
            assert torch.allclose(torch.as_tensor(whole.metrics[name][place]).double(), torch.stack(parts).sum()), name


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_is_the_sum_of_its_parts(name: str, level: str) -> None:
    data = Completions([5, 3, 0, 7, 1, 4])
    settings: dict[str, Any] = {"loss_type": name, "importance_sampling_level": level}
    settings |= {"beta": 0.1, "off_policy_mask_threshold": 0.1, "delta": 1.5}
    whole, halves = data.loss(**settings), [data.loss(0, 2, **settings), data.loss(2, 6, **settings)]
    assert_adds_up(whole, halves)
    gradients = [data.gradient(half) for half in halves]
    assert torch.allclose(data.gradient(whole), gradients[0] + gradients[1])


def test_a_batch_is_the_sum_of_its_parts_in_leave_one_out() -> None:
    data = Completions([5, 3, 0, 7, 1, 4])
    whole, halves = data.leave_one_out(), [data.leave_one_out(0, 2), data.leave_one_out(2, 6)]
    assert_adds_up(whole, halves)
    assert torch.allclose(data.gradient(whole), data.gradient(halves[0]) + data.gradient(halves[1]))


def test_token_means_are_sequence_means_where_lengths_are_equal() -> None:
    data = Completions([4, 4, 4])
    dapo = data.gradient(data.loss(loss_type="dapo"), targets=12, selected_targets=1)
    assert torch.allclose(dapo, data.gradient(data.loss(loss_type="grpo"), sequences=3, selected_targets=1))
    assert torch.allclose(dapo, data.gradient(data.loss(loss_type="bnpo"), targets=12, selected_targets=1))
    # Completions that use all of their budget; and sums over sequences, a fourth of them.
    assert torch.allclose(dapo, data.gradient(data.loss(loss_type="dr_grpo"), budget=12, selected_targets=1))
    assert torch.allclose(dapo, data.gradient(data.loss(loss_type="luspo"), sequences=12, selected_targets=1))


@pytest.mark.parametrize("name", LOSSES)
def test_ratios_of_one_token_are_those_of_its_sequence(name: str) -> None:
    data = Completions([1, 1, 1, 1])
    token, sequence = (data.loss(loss_type=name, beta=0.1, importance_sampling_level=level) for level in LEVELS)
    assert torch.allclose(data.gradient(token), data.gradient(sequence))
    assert token.metrics.keys() == sequence.metrics.keys()
    for key, (value, weight) in token.metrics.items():
        assert (float(value), float(weight)) == pytest.approx([float(x) for x in sequence.metrics[key]])


def test_leave_one_out_of_one_token_is_the_clipped_loss() -> None:
    data = Completions([1, 1, 1, 1])
    data.mask = torch.ones(4)
    policy = data.loss(loss_type="luspo")
    assert torch.allclose(data.gradient(data.leave_one_out()), data.gradient(policy))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", LOSSES)
def test_on_policy_the_gradient_is_that_of_reinforce(name: str, level: str) -> None:
    """-A·∇log π of each token, at both levels: a sequence's ratio has the mean of its tokens' gradients, and each of
    them has that loss."""
    data = Completions([3, 1, 4])
    data.mask = torch.ones(8)
    actual = data.gradient(data.loss(loss_type=name, importance_sampling_level=level, epsilon_high=2.0, on_policy=True))
    expected = -data.advantages[data.sequence_ids]
    if LOSSES[name].mean_of_sequence:
        expected = expected / torch.tensor([3, 1, 4])[data.sequence_ids]
    assert torch.allclose(actual, expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", LOSSES)
def test_nothing_to_learn_from_is_no_error(name: str, level: str) -> None:
    data = Completions([0, 0])
    policy = data.loss(loss_type=name, beta=0.1, importance_sampling_level=level)
    for loss in (policy, data.leave_one_out()):
        values = [term.sum for term in loss.terms] + [
            torch.as_tensor(x) for pair in loss.metrics.values() for x in pair
        ]
        assert all(torch.isfinite(value).all() for value in values)
        assert data.gradient(loss).shape == (0,)
    if level == "token":  # no token, so no share of them: nothing is logged
        assert all(float(weight) == 0 for key, (_, weight) in policy.metrics.items() if "clip_ratio" in key)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("distance", [-1000.0, 1000.0])
def test_ratios_beyond_float32_stay_finite(name: str, level: str, distance: float) -> None:
    data = Completions([2, 3])
    data.logprobs = data.logprobs.detach().float().requires_grad_()
    data.old, data.reference = data.logprobs.detach() - distance, data.logprobs.detach() + distance
    data.entropy, data.mask, data.advantages = data.entropy.float(), data.mask.float(), torch.tensor([1.0, -1.0])
    for loss in (data.loss(loss_type=name, beta=0.1, importance_sampling_level=level), data.leave_one_out()):
        assert all(torch.isfinite(term.sum) for term in loss.terms)
        assert torch.isfinite(data.gradient(loss)).all()
        assert all(torch.isfinite(torch.as_tensor(value)).all() for value, _ in loss.metrics.values())
