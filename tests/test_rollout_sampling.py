"""Drawing tokens: the distribution that comes out, what truncation leaves, and the numbers that decide."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from posttrain.rollout.sampling import Sampling, _penalised, draw, truncated, uniforms

DRAWS = 20_000
HALVES = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()


def sampling(**changes: object) -> Sampling:
    return Sampling(max_new_tokens=1, eos_token_ids=(), **changes)  # type: ignore[arg-type]


@functools.cache
def numbers_of(seed: int) -> torch.Tensor:
    return torch.from_numpy(uniforms(seed, range(DRAWS), 1)[:, 0])


def drawn(logits: torch.Tensor, how: Sampling, seed: int = 0) -> np.ndarray:
    """(V,) how often each token comes in DRAWS draws."""
    tokens = draw(logits.expand(DRAWS, -1), numbers_of(seed), how)[0]
    return np.bincount(tokens.numpy(), minlength=logits.shape[-1])


def by_definition(logits: torch.Tensor, how: Sampling) -> np.ndarray:
    """(V,) probabilities in float64, token by token, in the words of the definitions."""
    p = np.exp(logits.double().numpy() / how.temperature)
    order = np.argsort(-p)
    if how.top_k:
        p[order[how.top_k :]] = 0
    p /= p.sum()
    if how.top_p < 1:
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= how.top_p]] = 0
        p /= p.sum()
    if how.min_p:
        p[p < how.min_p * p.max()] = 0
    return p / p.sum()


def deviation(counts: np.ndarray, p: np.ndarray) -> float:
    """Pearson's chi-square as a normal deviate (Wilson and Hilferty 1931); above 4 by chance once in 30,000 cases."""
    assert counts[p == 0].sum() == 0
    expected = p[p > 0] * DRAWS
    freedom = len(expected) - 1
    chi_square = ((counts[p > 0] - expected) ** 2 / expected).sum()
    return float(((chi_square / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / np.sqrt(2 / (9 * freedom)))


WAYS = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "top-k": {"top_k": 5},
    "top-p": {"top_p": 0.8},
    "min-p": {"min_p": 0.2},
    "all": {"temperature": 1.5, "top_k": 9, "top_p": 0.9, "min_p": 0.1},
}


@pytest.mark.parametrize("vocabulary", [12, 64, 150])
@pytest.mark.parametrize("way", WAYS)
def test_draws_follow_the_distribution(way: str, vocabulary: int) -> None:
    how = sampling(**WAYS[way])
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(1))
    counts = drawn(logits, how)
    assert abs(deviation(counts, by_definition(logits, how))) < 4


def test_the_same_test_rejects_another_distribution() -> None:
    logits = torch.randn(12, generator=torch.Generator().manual_seed(1))
    counts = drawn(logits, sampling())
    assert deviation(counts, by_definition(logits, sampling(temperature=1.15))) > 4
    counts = drawn(logits, sampling(temperature=1.15))
    assert deviation(counts, by_definition(logits, sampling())) > 4


def test_the_inverse_of_the_cumulative_distribution() -> None:
    """Every number gives the token into whose interval it falls."""
    logits = torch.randn(1, 150)
    p = logits[0].double().softmax(-1).numpy()
    numbers = np.random.default_rng(0).random(5000)
    tokens = draw(logits.expand(5000, -1), torch.from_numpy(numbers), sampling())[0]
    assert np.array_equal(tokens.numpy(), np.searchsorted(np.cumsum(p), numbers, side="right"))


@pytest.mark.parametrize("vocabulary", [4, 64, 100, 130])
def test_a_token_of_probability_zero_is_never_drawn(vocabulary: int) -> None:
    """Neither at the ends of the interval, nor where whole blocks, the first and the last tokens have none."""
    for possible in range(vocabulary):
        logits = torch.full((2, vocabulary), -torch.inf)
        logits[:, possible] = 1.0
        ends = torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.float64)
        tokens, logprobs, _ = draw(logits, ends, sampling())
        assert tokens.tolist() == [possible, possible]
        assert logprobs.tolist() == [0.0, 0.0]


def test_rounding_at_the_end_of_the_interval() -> None:
    logits = torch.randn(3000, 200)
    last = torch.full((3000,), np.nextafter(1.0, 0.0), dtype=torch.float64)
    logits[:, 150:] = -torch.inf
    tokens = draw(logits, last, sampling())[0]
    assert (tokens == 149).all()


@pytest.mark.parametrize("changes", [{"top_k": 2}, {"top_p": 0.7}, {"min_p": 0.4}])
def test_log_probs_where_two_tokens_are_left(changes: dict[str, float]) -> None:
    """Of 0.5, 0.25, 0.15, 0.1 the first two are left, as 2/3 and 1/3."""
    numbers = torch.tensor([0.0, 0.66, 0.67, 0.999], dtype=torch.float64)
    tokens, logprobs, policy_logprobs = draw(HALVES.expand(4, -1), numbers, sampling(**changes))
    assert tokens.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(logprobs.exp(), torch.tensor([2 / 3, 2 / 3, 1 / 3, 1 / 3]))
    torch.testing.assert_close(policy_logprobs.exp(), torch.tensor([0.5, 0.5, 0.25, 0.25]))


def test_temperature_is_part_of_both_log_probs() -> None:
    """At 0.5 the weights are squared: 0.25, 0.0625, 0.0225, 0.01, together 0.345; top-k leaves 0.25 and 0.0625."""
    numbers = torch.tensor([0.0], dtype=torch.float64)
    _, logprobs, policy_logprobs = draw(HALVES, numbers, sampling(temperature=0.5))
    assert logprobs is policy_logprobs
    assert logprobs.exp().item() == pytest.approx(0.25 / 0.345)
    _, logprobs, policy_logprobs = draw(HALVES, numbers, sampling(temperature=0.5, top_k=2))
    assert logprobs.exp().item() == pytest.approx(0.8)
    assert policy_logprobs.exp().item() == pytest.approx(0.25 / 0.345)


def test_repetition_penalty() -> None:
    """Penalty 2 on the first token, whose logit is negative: 0.25, 0.25, 0.15, 0.1, together 0.75. Where its logit is
    positive, log 4, it is halved: weights 4 and 1 become 2 and 1."""
    seen = torch.tensor([[True, False, False, False]])
    numbers = torch.tensor([0.1], dtype=torch.float64)
    tokens, logprobs, policy_logprobs = draw(HALVES, numbers, sampling(repetition_penalty=2.0), seen)
    assert tokens.item() == 0
    assert logprobs.exp().item() == pytest.approx(1 / 3)
    assert policy_logprobs.exp().item() == pytest.approx(0.5)
    logits = torch.tensor([[4.0, 1.0]]).log()
    _, logprobs, policy_logprobs = draw(logits, numbers, sampling(repetition_penalty=2.0), seen[:, :2])
    assert logprobs.exp().item() == pytest.approx(2 / 3)
    assert policy_logprobs.exp().item() == pytest.approx(0.8)


def test_temperature_zero_takes_the_largest() -> None:
    """With log-probs at temperature 1."""
    tokens, logprobs, _ = draw(
        HALVES, torch.tensor([0.99], dtype=torch.float64), sampling(temperature=0.0, top_p=0.1, top_k=2)
    )
    assert tokens.item() == 0
    assert logprobs.exp().item() == pytest.approx(0.5)


def test_what_is_left_is_what_transformers_leaves() -> None:
    logits = 3 * torch.randn(40, 300)
    ids = torch.randint(0, 300, (40, 20))
    how = sampling(temperature=0.8, top_k=50, top_p=0.9, min_p=0.02, repetition_penalty=1.3)
    warpers = [
        RepetitionPenaltyLogitsProcessor(1.3),
        TemperatureLogitsWarper(0.8),
        TopKLogitsWarper(50),
        TopPLogitsWarper(0.9),
        MinPLogitsWarper(0.02),
    ]
    seen = torch.zeros(40, 300, dtype=torch.bool).scatter_(1, ids, True)
    ours = truncated(_penalised(logits, seen, 1.3) / 0.8, how)
    theirs = LogitsProcessorList(warpers)(ids, logits.clone())
    assert torch.equal(ours.isinf(), theirs.isinf())
    torch.testing.assert_close(ours, theirs)
    for alone, warper in (({"top_k": 50}, 2), ({"top_p": 0.9}, 3), ({"min_p": 0.02}, 4)):
        ours = truncated(logits, sampling(**alone))
        assert torch.equal(ours, warpers[warper](ids, logits.clone()))
        assert ours.isinf().any()


def test_logits_that_are_no_numbers_give_a_token_and_no_log_prob() -> None:
    logits = torch.full((2, 100), torch.nan)
    tokens, logprobs, _ = draw(logits, torch.tensor([0.1, 0.9], dtype=torch.float64), sampling())
    assert (tokens < 100).all() and logprobs.isnan().all()


def test_uniforms_depend_on_seed_and_sample_alone() -> None:
    numbers = uniforms(7, [3, 1, 10**12], 50)
    assert numbers.dtype == np.float64 and numbers.shape == (3, 50)
    assert np.array_equal(uniforms(7, [1], 50)[0], numbers[1])
    assert np.array_equal(uniforms(7, [10**12, 3], 20), numbers[[2, 0], :20])
    assert np.array_equal(numbers[0], np.random.Generator(np.random.Philox(key=[7, 3])).random(50))
    others = [uniforms(seed, [sample], 50)[0] for seed, sample in ((8, 3), (-7, 3), (2**63 + 1, 3), (2**63 + 2, 3))]
    different = np.stack([*others, *numbers])
    assert len(np.unique(different)) == different.size


def test_uniforms_are_uniform() -> None:
    numbers = uniforms(0, range(200), 100)
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = np.bincount((numbers * 50).astype(int).ravel(), minlength=50)
    assert ((counts - 400) ** 2 / 400).sum() < 99.0  # of 49 degrees of freedom, by chance once in 30,000 cases
    between_samples = np.corrcoef(numbers)[np.triu_indices(200, 1)]
    assert np.abs(between_samples).max() < 0.5
