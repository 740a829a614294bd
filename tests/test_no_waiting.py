"""That forward pass, loss and backward pass of every method never ask a device for a number.

They run on torch's device without numbers ("meta"), in bfloat16 and with the kernels that a GPU would take. There
`.item()`, `.tolist()`, a condition on a tensor, an index by a mask, `bincount`, copies to the CPU all raise; on a GPU
each of them would wait for all that it has been asked before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate.data_loader
import numpy as np
import pytest
import torch
from tiny import run, write_base, write_preference
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification

from posttrain import attention
from posttrain.batch import NO_PARENT, PackedBatch, pack
from posttrain.config import parse_command_line
from posttrain.counts import Counts
from posttrain.logprobs import TargetHead
from posttrain.methods import Method
from posttrain.methods.dpo import DPO
from posttrain.methods.grpo import GRPO
from posttrain.methods.reward import Reward
from posttrain.methods.rloo import RLOO
from posttrain.methods.sft import SFT
from posttrain.reward_scoring import RewardScorer, ScoreHead
from posttrain.scoring import Scorer
from posttrain.trainer import PostTrainer

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 200,
}
METHODS: dict[str, type[Method]] = {"sft": SFT, "reward": Reward, "dpo": DPO, "grpo": GRPO, "rloo": RLOO}


class Copies(TorchDispatchMode):
    """Counts copies to the device, those that wait apart."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = self.others = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and (kwargs.get("device") or args[0].device) != args[0].device:
            self.waiting += not kwargs.get("non_blocking")
            self.others += bool(kwargs.get("non_blocking"))
        return func(*args, **kwargs)


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way through the code that a GPU takes; the device without numbers has no autocast."""
    monkeypatch.setattr(attention, "_takes_varlen", lambda query, *_: query.device.type == "meta")
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())


def scorer_of(method: str) -> tuple[PreTrainedModel, Any]:
    """A model on the device and its scorer, which has gone the packed way."""
    kind = Qwen2ForSequenceClassification if method == "reward" else Qwen2ForCausalLM
    with torch.device("meta"):
        model = kind(Qwen2Config(**SIZES, num_labels=1, pad_token_id=0)).to(torch.bfloat16)
    model.set_attn_implementation(attention.NAME)
    if method == "reward":
        scorer: Any = object.__new__(RewardScorer)
        scorer.packed = scorer.has_head = True
        scorer._dtype = model.dtype
        scorer._options = {"use_cache": False}
        model.score.__class__ = ScoreHead
    else:
        scorer = object.__new__(Scorer)
        scorer.packed, scorer._config, scorer._dtype = True, model.config, model.dtype
        scorer.head = TargetHead.adopt(model.get_output_embeddings())
    return model, scorer


def batch_of(method: str, off_policy: bool = False) -> PackedBatch:
    """Two documents, or prompts with two completions each."""
    lengths, parents = (6, 4, 5, 7, 3, 2), (NO_PARENT, 0, 0, NO_PARENT, 3, 3)
    if method == "sft":
        parents = (NO_PARENT,) * 6
    ids = [np.arange(1, 1 + n) * (i + 3) for i, n in enumerate(lengths)]
    masks = [
        np.full(n, method == "sft" or parent != NO_PARENT, np.int8) for n, parent in zip(lengths, parents, strict=True)
    ]
    for mask, parent in zip(masks, parents, strict=True):
        mask[0] = mask[0] and parent != NO_PARENT
    batch = pack(ids, masks, parents, num_groups=2)
    numbers = torch.zeros(batch.num_targets)
    more: dict[str, Any] = {}
    if method in ("dpo", "grpo"):
        more["reference_logprobs"] = numbers
    if method in ("grpo", "rloo"):
        more["advantages"] = torch.tensor([1.0, -1.0, 0.5, -0.5])
        more["old_logprobs"] = more["sampler_log_ratio"] = numbers if off_policy else None
    if method == "reward":
        more["margins"] = torch.ones(2)
    return PackedBatch(**{name: getattr(batch, name) for name in batch.__dataclass_fields__} | more)


def trainer_of(method: str, words: list[str]) -> Any:
    """As much of the trainer as a micro-batch's forward pass and loss need."""
    flags = ["--model_name_or_path", "model", "--dataset_name", "rows.jsonl", *words]
    if method in ("grpo", "rloo"):
        flags += ["--reward_funcs", "accuracy_reward"]
    trainer: Any = object.__new__(PostTrainer)
    trainer.method = METHODS[method](parse_command_line(method, flags)[0])
    trainer.router_loss_coef, trainer._counts, trainer.model_wrapped = None, Counts(), None
    trainer.args = SimpleNamespace(world_size=1, device=torch.device("meta"))
    trainer.accelerator = SimpleNamespace(autocast=contextlib.nullcontext)
    return trainer


@contextlib.contextmanager
def training(method: str, *words: str, off_policy: bool = False) -> Iterator[tuple[Any, PreTrainedModel, PackedBatch]]:
    trainer = trainer_of(method, list(words))
    model, trainer.scorer = scorer_of(method)
    yield trainer, model, batch_of(method, off_policy)


CASES = [
    ("sft", (), False),
    ("sft", ("--loss_type", "dft"), False),
    ("reward", ("--center_rewards_coefficient", "0.01"), False),
    ("dpo", (), False),
    ("dpo", ("--loss_type", "sigmoid", "sft", "--use_weighting", "--ld_alpha", "0.5"), False),
    ("grpo", ("--beta", "0.04"), True),
    ("grpo", ("--loss_type", "grpo", "--importance_sampling_level", "sequence"), True),
    ("rloo", (), False),
]


@pytest.mark.parametrize(("method", "words", "off_policy"), CASES, ids=lambda value: str(value))
def test_a_step_asks_for_no_number(method: str, words: tuple[str, ...], off_policy: bool) -> None:
    with training(method, *words, off_policy=off_policy) as (trainer, model, batch):
        weights = trainer.method.weights(batch)
        tensors = sum(isinstance(getattr(batch, name), torch.Tensor) for name in batch.__dataclass_fields__)
        with Copies() as copies:
            inputs = trainer._prepare_inputs(batch)
            loss = trainer.compute_loss(model, inputs, num_items_in_batch=weights)
            loss.backward()
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "bias" not in name)
    assert trainer._counts.sums  # metrics are counted on the way
    assert copies.waiting == 0
    # The batch, and once for all layers where segments begin, where their keys do, and which these are.
    assert copies.others == tensors + 3


def test_batches_come_to_the_device_by_the_trainer_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate's loaders would move them as they are read, and wait with each tensor; what they are weighed by is
    looked at on the CPU."""

    def moved(*_: Any, **__: Any) -> Any:
        raise AssertionError("moved while it was read")

    monkeypatch.setattr(accelerate.data_loader, "send_to_device", moved)
    base, pairs = write_base(tmp_path / "base"), write_preference(tmp_path / "pairs.jsonl")
    run("dpo", base, pairs, tmp_path / "dpo", *"--eval_strategy steps --eval_steps 1 --test_split_size 0.25".split())


def test_a_number_that_is_asked_for_is_noticed() -> None:
    with training("sft") as (trainer, model, batch):
        told = trainer.scorer(model, trainer._prepare_inputs(batch))
        for ask in (
            lambda: told.logprobs.sum().item(),
            lambda: told.logprobs.tolist(),
            lambda: bool((told.logprobs > 0).any()),
            lambda: told.logprobs[told.logprobs > 0],
            lambda: told.logprobs.cpu(),
        ):
            with pytest.raises((RuntimeError, NotImplementedError)):
                ask()
        with Copies() as copies:
            batch.to("meta")
        assert copies.waiting
