"""Batches at the edge of what there is: nothing to learn from, nothing to tell apart, a token or none of a thing. Every
method trains and evaluates on them with finite numbers, and without a step that is skipped."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import curve, run, run_policy, write_base, write_prompts, write_rows
from transformers import AutoModelForCausalLM

from posttrain import watch
from posttrain.batch import PackedBatch
from posttrain.config import DPOConfig, GRPOConfig, RLOOConfig, SFTConfig
from posttrain.losses.policy import LOSSES
from posttrain.methods.dpo import DPO
from posttrain.methods.grpo import GRPO
from posttrain.methods.rloo import RLOO
from posttrain.methods.sft import SFT
from posttrain.rollout.collect import Rollout
from posttrain.rollout.loader import pack_rollouts
from posttrain.scoring import Scorer

EVALUATION = ["--eval_strategy", "steps", "--eval_steps", "2", "--test_split_size", "4", "--max_steps", "2"]
BATCHES = ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2"]
REWARDS = """
def same(completions, **columns):
    return [1.0] * len(completions)

def length(completion_ids, **columns):
    return [float(len(set(ids))) for ids in completion_ids]

def of_some(completion_ids, **columns):
    return [None if i % 4 else float(len(set(ids))) for i, ids in enumerate(completion_ids)]
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "model")


def check_finite(state: dict[str, Any], out: Path) -> None:
    assert state["global_step"] >= 2
    for line in state["log_history"]:
        assert all(math.isfinite(value) for value in line.values() if value is not None), line
        assert "nonfinite_steps" not in line
    assert all("loss" in line for line in state["log_history"] if "learning_rate" in line)
    assert any("eval_loss" in line for line in state["log_history"])
    assert all(value.isfinite().all() for value in load_file(out / "model.safetensors").values())


def pair(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def document(*ids: int, mask: list[int] | None = None) -> dict[str, Any]:
    return {"input_ids": list(ids), "assistant_masks": mask or [1] * len(ids)}


PAIRS = {
    "empty prompts": [pair("", f"yes {i}", f"no {i}") for i in range(12)],
    "one token of everything": [pair("a", "b", "c") for _ in range(12)],
    "one token of difference": [pair(f"question {i}", "yes, it is so", "yes, it is no") for i in range(12)],
}
DOCUMENTS = {
    "two tokens": [document(5, 6 + i % 4) for i in range(12)],
    "one target, the last": [document(5, 6, 7, 8 + i % 4, mask=[0, 0, 0, 1]) for i in range(12)],
    "one token, and others": [document(5) for i in range(6)] + [document(5, 6, 7) for i in range(12)],
    "empty texts, and others": [{"text": ""}] * 6 + [{"text": f"text {i}"} for i in range(12)],
}


@pytest.mark.parametrize("method", ["dpo", "reward"])
@pytest.mark.parametrize("name", PAIRS)
def test_pairs(method: str, name: str, base: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", PAIRS[name])
    extra = ["--loss_type", "sigmoid", "sft", "ipo"] if method == "dpo" else ["--center_rewards_coefficient", "0.1"]
    check_finite(run(method, base, data, tmp_path / "out", *BATCHES, *EVALUATION, *extra), tmp_path / "out")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents(name: str, base: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", DOCUMENTS[name])
    packing = ["--packing", "--max_length", "8"] if "others" in name else []
    check_finite(run("sft", base, data, tmp_path / "out", *BATCHES, *EVALUATION, *packing), tmp_path / "out")


ROLLOUTS: dict[str, list[str]] = {
    "zero variance": ["same", "--beta", "0"],
    "all cut off and masked": ["length", "--mask_truncated_completions", "--max_completion_length", "3"],
    "one token": ["length", "--max_completion_length", "1"],
    "one token, cut off, masked": ["same", "--max_completion_length", "1", "--mask_truncated_completions"],
    "one opinion a prompt": ["of_some"],
}
WAYS = {
    "grpo": ["--beta", "0.1", "--entropy_coef", "0.01", "--top_entropy_quantile", "0.5", "--num_iterations", "2"],
    "rloo": ["--beta", "0.1", "--normalize_advantages", "--num_iterations", "2"],
}


@pytest.mark.parametrize("method", WAYS)
@pytest.mark.parametrize("name", ROLLOUTS)
def test_rollouts(
    method: str,
    name: str,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Steps without a gradient are told, with the reason that they have."""
    monkeypatch.setattr(watch, "DEAD_STEPS", 2)
    (tmp_path / "rewards.py").write_text(REWARDS, encoding="utf-8")
    function, *words = ROLLOUTS[name]
    words += ["--reward_funcs", f"{tmp_path / 'rewards.py'}:{function}", "--per_device_eval_batch_size", "4"]
    words += ["--gradient_accumulation_steps", "2", "--per_device_train_batch_size", "4"]
    data = write_prompts(tmp_path / "rows.jsonl", 8)
    caplog.set_level(logging.WARNING)
    state = run_policy(method, base, data, tmp_path / "out", *EVALUATION, *WAYS[method], *words)
    check_finite(state, tmp_path / "out")
    if "cut off" in name:
        assert max(value for [value] in curve(state, "completions/clipped_ratio")) == 1
    if method == "rloo":  # of GRPO the entropy is trained on, whatever the rewards
        told = {reason for reason in (watch.NO_TARGETS, watch.NO_VARIANCE) if reason in caplog.text}
        assert told == {"zero variance": {watch.NO_VARIANCE}, "all cut off and masked": {watch.NO_TARGETS}}.get(
            name, told
        )


def without_targets(method: str) -> tuple[Any, PackedBatch]:
    """A method, and a batch without a target: of rows that are masked, or of completions that were all cut off."""
    row = {"place": "rows.jsonl line 1", "margin": None, "prompt_ids": [5, 6]}
    nothing = np.zeros(1, np.int8)
    if method == "sft":
        rows = [row | {"input_ids": [5] * length, "loss_mask": [0] * length} for length in (1, 2)]
        return SFT(SFTConfig()), SFT(SFTConfig()).collate(rows)
    if method == "dpo":
        equals = row | {"chosen_ids": [7], "rejected_ids": [7], "chosen_mask": nothing, "rejected_mask": nothing}
        config = DPOConfig(loss_type=["sigmoid", "ipo", "sft", "hinge"])
        return DPO(config), DPO(config).collate([equals, equals | {"prompt_ids": []}])
    rollouts = [Rollout(0, np.array([7]), np.zeros(1, np.float32), False, np.ones(1, np.float32)) for _ in range(4)]
    batch = pack_rollouts(rollouts, [row], mask_truncated=True)  # type: ignore[arg-type]
    batch = dataclasses.replace(batch, advantages=torch.ones(4), old_logprobs=torch.zeros(0))
    return (RLOO(RLOOConfig()) if method == "rloo" else GRPO(GRPOConfig(beta=0.1, loss_type=method))), batch


@pytest.mark.parametrize("method", ["sft", "dpo", "rloo", *LOSSES])
def test_a_batch_without_a_target_has_a_loss_and_a_gradient_of_zero(method: str, base: Path) -> None:
    one, batch = without_targets(method)
    model = AutoModelForCausalLM.from_pretrained(base)
    batch = dataclasses.replace(batch, reference_logprobs=torch.zeros(0))
    assert batch.num_targets == 0
    loss = one.loss(batch, Scorer(model, packed=True)(model, batch))
    share = sum(term.sum * (term.coefficient / (one.weights(batch)[term.divide_by] or 1)) for term in loss.terms)
    share.backward()
    assert share.isfinite()
    assert all(not parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)
    for total, weight in loss.metrics.values():
        assert math.isfinite(total.item()) and math.isfinite(weight)
