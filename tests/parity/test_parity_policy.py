"""Loss, gradient norm, clip ratios, KL, entropy and advantages that TRL gives on fixed completions, log-probs and
rewards, GRPO's family and RLOO. The kit is as in test_parity.py; without one, all skip."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from posttrain.batch import NO_PARENT, PackedBatch, pack
from posttrain.losses import Loss
from posttrain.losses.advantages import group_advantages, leave_one_out_advantages
from posttrain.losses.entropy import top_entropy_mask
from posttrain.losses.leave_one_out import leave_one_out_loss
from posttrain.losses.policy import PolicyOptions, policy_loss, policy_weights
from posttrain.losses.ratios import kl_estimates, sums_by_sequence
from posttrain.scoring import Scorer

KIT = Path(os.environ.get("POSTTRAIN_PARITY") or Path(__file__).parents[2].parent / "shared" / "parity")
FILE = KIT / "policy.json"
CASES: dict[str, Any] = json.loads(FILE.read_text()) if FILE.is_file() else {}
MAX_COMPLETION_LENGTH = 64
OPTIONS = {field.name for field in dataclasses.fields(PolicyOptions)}

pytestmark = pytest.mark.skipif(not CASES, reason="no parity kit: POSTTRAIN_PARITY names none")


def titled(kind: str) -> list[Any]:
    def title(case: dict[str, Any]) -> str:
        words = [str(value) for value in case["flags"].values()]
        return "-".join([*words, "off-policy" if case.get("old_logprobs", True) else "on-policy"])

    return [pytest.param(case, id=title(case)) for case in CASES.get(kind, [])]


def flat(key: str) -> torch.Tensor:
    return torch.tensor([value for row in CASES[key] for value in row])


def batch() -> PackedBatch:
    """Groups of completions under one prompt each."""
    size = CASES["num_generations"]
    ids, masks, parents = [], [], []
    for start in range(0, len(CASES["prompt_ids"]), size):
        prompt = CASES["prompt_ids"][start]
        assert all(other == prompt for other in CASES["prompt_ids"][start : start + size])
        parent = len(ids)
        ids.append(np.array(prompt))
        masks.append(np.zeros(len(prompt), dtype=np.int8))
        parents.append(NO_PARENT)
        for completion in CASES["completion_ids"][start : start + size]:
            ids.append(np.array(completion))
            masks.append(np.ones(len(completion), dtype=np.int8))
            parents.append(parent)
    return pack(ids, masks, parents, num_groups=len(CASES["prompt_ids"]) // size)


@functools.cache
def scored(packed: bool) -> tuple[torch.nn.Module, Scorer]:
    model = AutoModelForCausalLM.from_pretrained(KIT / "model", dtype=torch.float32).train()
    return model, Scorer(model, packed=packed)


def grpo(case: dict[str, Any], packed: bool = True) -> tuple[torch.nn.Module, Loss, dict[str, int]]:
    flags = case["flags"]
    options = PolicyOptions(
        max_completion_length=MAX_COMPLETION_LENGTH, **{k: v for k, v in flags.items() if k in OPTIONS}
    )
    rows = batch()
    model, scorer = scored(packed)
    statistics = scorer(model, rows, with_entropy_gradient="entropy_coef" in flags)
    mask = None
    if "top_entropy_quantile" in flags:
        mask = top_entropy_mask(statistics.entropy.detach(), flags["top_entropy_quantile"])
    loss = policy_loss(
        statistics.logprobs,
        statistics.entropy,
        rows.sequence_ids,
        torch.tensor(CASES["advantages"]),
        options,
        old_logprobs=flat("old_logprobs") if case["old_logprobs"] else None,
        reference_logprobs=flat("ref_logprobs"),
        entropy_mask=mask,
        entropy_coef=flags.get("entropy_coef"),
    )
    return model, loss, policy_weights(rows.num_targets, rows.num_sequences, options, mask)


def compare(model: torch.nn.Module, loss: Loss, weights: dict[str, int], case: dict[str, Any]) -> None:
    model.zero_grad()
    total = sum(term.sum * term.coefficient / weights[term.divide_by] for term in loss.terms)
    assert isinstance(total, torch.Tensor)
    total.backward()
    norm = torch.stack([p.grad.square().sum() for p in model.parameters() if p.grad is not None]).sum().sqrt()
    values = {name: float(value) / float(weight) for name, (value, weight) in loss.metrics.items()}
    values |= {"loss": total.item(), "grad_norm": norm.item()}
    for name, expected in case.items():
        if name not in ("flags", "old_logprobs"):
            tolerance = 1e-3 if name == "grad_norm" else 1e-4
            message = f"{name}: {values[name]} instead of {expected}"
            assert math.isclose(values[name], expected, rel_tol=tolerance, abs_tol=1e-7), message


@pytest.mark.parametrize("case", titled("grpo"))
def test_grpo(case: dict[str, Any]) -> None:
    compare(*grpo(case), case)


def test_grpo_padded() -> None:
    case = next(c for c in CASES["grpo"] if c["flags"].get("beta") and c["old_logprobs"])
    compare(*grpo(case, packed=False), case)


@pytest.mark.parametrize("case", titled("rloo"))
def test_rloo(case: dict[str, Any]) -> None:
    rows = batch()
    model, scorer = scored(True)
    statistics = scorer(model, rows)
    loss = leave_one_out_loss(
        statistics.logprobs,
        statistics.entropy,
        rows.sequence_ids,
        torch.tensor(CASES["advantages"]),
        flat("old_logprobs"),
        **case["flags"],
    )
    compare(model, loss, {"sequences": rows.num_sequences}, case)


def test_log_probs_are_those_of_the_kit() -> None:
    model, scorer = scored(True)
    assert torch.allclose(scorer(model, batch()).logprobs.detach(), flat("policy_logprobs"), atol=2e-5)


@pytest.mark.parametrize("case", [pytest.param(c, id=c["scale_rewards"]) for c in CASES.get("grpo_advantages", [])])
def test_grpo_advantages(case: dict[str, Any]) -> None:
    rewards = torch.tensor(CASES["rewards"])[:, None]
    actual = group_advantages(rewards, CASES["num_generations"], scale_rewards=case["scale_rewards"])
    assert torch.allclose(actual.values, torch.tensor(case["advantages"]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES.get("rloo_advantages", []))
def test_rloo_advantages(case: dict[str, Any]) -> None:
    kl = kl_estimates(flat("policy_logprobs"), flat("ref_logprobs"), "k1")
    kl = sums_by_sequence(kl, batch().sequence_ids, len(CASES["rewards"]))
    assert torch.allclose(kl, torch.tensor(case["kl_k1_sum"]), atol=1e-5)
    actual = leave_one_out_advantages(
        torch.tensor(CASES["rewards"])[:, None],
        CASES["num_generations"],
        kl,
        case["beta"],
        normalize_advantages=case["normalize_advantages"],
    )
    assert torch.allclose(actual.values, torch.tensor(case["advantages"]), rtol=1e-5, atol=1e-6)
