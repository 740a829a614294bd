"""The frozen model that a preference or policy method measures itself against, and its log-probs.

Three kinds: a model of its own (a copy of the policy as loaded, or the one named by `--ref_model_name_or_path`); the
policy with its adapter switched off, where LoRA is trained; log-probs computed once before training and kept on disk
under a hash of all that they depend on, so that a sweep over beta computes them once.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, concatenate_datasets
from filelock import FileLock
from torch.distributed.fsdp import FSDPModule
from tqdm.auto import tqdm
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from posttrain.batch import PackedBatch
from posttrain.errors import UserError
from posttrain.models import checkpoint_activations, digest_of_model
from posttrain.scoring import Scorer
from posttrain.sharding import local_part, own_part, spread_frozen, whole_parameters

logger = logging.getLogger(__name__)

COLUMN = "reference_logprobs"


@dataclasses.dataclass
class Reference:
    """Scores batches under the reference.

    Args:
        scorer: of `model`, or of the policy where there is none.
        model: frozen; None means the policy without its adapter.
        autocast: type of its products, that of the policy's (`mixed_precision`): in another one, rounding would be
            taken for a difference between the two. None: that of its weights.
    """

    scorer: Scorer
    model: PreTrainedModel | None = None
    autocast: torch.dtype | None = None

    @classmethod
    def frozen_copy(
        cls,
        policy: PreTrainedModel,
        device: torch.device,
        packed: bool,
        spread: bool,
        autocast: torch.dtype | None = None,
    ) -> Reference:
        """The policy as it is now; arguments as for `frozen`."""
        own: dict[int, Any] = {}
        if spread:  # which copies the parts that stay; in one piece nothing is held twice
            own = {id(one): torch.nn.Parameter(one.detach(), requires_grad=False) for one in policy.parameters()}
        return cls.frozen(copy.deepcopy(policy, own), device, packed, spread, autocast)

    @classmethod
    def frozen(
        cls,
        model: PreTrainedModel,
        device: torch.device,
        packed: bool,
        spread: bool,
        autocast: torch.dtype | None = None,
    ) -> Reference:
        """A model of its own, frozen in place.

        Args:
            model: on the CPU, or on the device.
            device: of this process.
            packed: as for `Scorer`.
            spread: over all processes, which are then to score batches together, each as many as the others.
            autocast: type of products; None: that of the weights.
        """
        is_spread = spread and not getattr(model, "is_quantized", False)  # 4 bits cannot be cut anywhere
        if not is_spread:
            model.to(device)
        model.eval().requires_grad_(False)
        checkpoint_activations(model, on=False)
        scorer = Scorer(model, packed)
        if is_spread:
            spread_frozen(model, device, autocast)
        return cls(scorer, model, autocast)

    @torch.no_grad()
    def complete(
        self, batch: PackedBatch, policy: torch.nn.Module | None = None, temperature: float = 1.0
    ) -> PackedBatch:
        """The batch with `reference_logprobs` (N,) set.

        Args:
            batch: on the device.
            policy: the model being trained, wrapped or not; needed where the reference is the policy's bare model.
            temperature: divides the logits.
        """
        model: torch.nn.Module | None = self.model
        with contextlib.ExitStack() as stack:
            if model is None:
                assert policy is not None
                model = policy
                was_training = model.training
                model.eval()
                stack.callback(model.train, was_training)
                if isinstance(policy, FSDPModule):
                    # It looks once, at its first pass, which weights want gradients, and in which type to add them up:
                    # without adapters none do.
                    policy._get_fsdp_state()._lazy_init()
                stack.enter_context(_unwrap(policy).disable_adapter())
            if self.autocast is not None:
                stack.enter_context(torch.autocast(batch.input_ids.device.type, self.autocast))
            logprobs = self.scorer(model, batch, temperature).logprobs
        return dataclasses.replace(batch, reference_logprobs=logprobs)

    def state_dict(self) -> dict[str, Any]:
        """The weights of a reference that moves, for a checkpoint: of a spread one, those of this process."""
        assert self.model is not None
        own = self.model.state_dict()
        return {"reference": {name: local_part(value).detach().cpu() for name, value in own.items()}}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes them back."""
        assert self.model is not None
        for name, value in self.model.state_dict().items():
            part, kept = local_part(value), state["reference"][name]
            if part.shape != kept.shape:
                raise UserError(
                    "--resume_from_checkpoint: the checkpoint holds a reference that was spread over other processes; "
                    "take the same number of processes and the same --accelerate_config, or start anew",
                    page="distributed.md",
                )
            part.copy_(kept)


def mixed_precision(arguments: TrainingArguments) -> torch.dtype | None:
    """The type in which the policy of a run multiplies; None: that of its weights."""
    return torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else None


def _unwrap(model: Any) -> Any:
    while hasattr(model, "module"):
        model = model.module
    return model


class SyncReference(TrainerCallback):
    """Moves the reference towards the policy every few steps: reference ← α · policy + (1 - α) · reference
    (TR-DPO, arXiv 2404.09656, eq. 5).

    Args:
        reference: one with a model of its own.
        alpha: share of the policy.
        every: optimizer steps between two moves.
    """

    def __init__(self, reference: Reference, alpha: float, every: int):
        self.reference, self.alpha, self.every = reference, alpha, every

    @torch.no_grad()
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.every:
            return
        assert self.reference.model is not None
        own = dict(self.reference.model.named_parameters())
        for name, new in whole_parameters(kwargs["model"]):
            kept = own[name]
            local_part(kept).lerp_(own_part(new.to(kept.device, kept.dtype), kept), self.alpha)


def with_stored_logprobs(
    reference: Reference,
    dataset: Dataset,
    collate: Callable[[list[dict[str, Any]]], PackedBatch],
    folder: Path,
    batch_size: int,
) -> Dataset:
    """The dataset with a column `reference_logprobs` (targets of a row,), read from `folder` or computed into it.

    Args:
        reference: one with a model of its own.
        dataset: tokenised rows.
        collate: rows → batch; the order of its targets is the order of the column.
        folder: of the cache.
        batch_size: rows scored at a time.
    """
    model = reference.model
    assert model is not None
    products = "" if reference.autocast is None else f" {reference.autocast}"
    about = f"{digest_of_model(model)} {dataset._fingerprint} {model.dtype}{products}"
    key = hashlib.sha256(about.encode()).hexdigest()[:32]
    path = folder / f"{key}.arrow"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):  # of several processes on a machine one computes, the others read
        if path.exists():
            logger.warning("Reference log-probs: read from %s", path)
        else:
            _store_logprobs(reference, model, dataset, collate, path, batch_size)
    return concatenate_datasets([dataset, Dataset.from_file(str(path))], axis=1)


def _store_logprobs(
    reference: Reference,
    model: PreTrainedModel,
    dataset: Dataset,
    collate: Callable[[list[dict[str, Any]]], PackedBatch],
    path: Path,
    batch_size: int,
) -> None:
    beside = path.with_suffix(".part")  # one process computes; what a killed one has left is written over
    schema = pa.schema([(COLUMN, pa.list_(pa.float32()))])
    with pa.OSFile(str(beside), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        for start in tqdm(range(0, len(dataset), batch_size), desc="Reference log-probs", unit="batch"):
            rows = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
            batch = collate(rows).to(model.device)
            logprobs = reference.complete(batch).reference_logprobs
            assert logprobs is not None
            counts = np.bincount(batch.sequence_ids.cpu().numpy() // 2, minlength=len(rows))
            offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
            values = pa.array(logprobs.float().cpu().numpy())
            stream.write_batch(pa.record_batch([pa.ListArray.from_arrays(offsets, values)], schema=schema))
    os.replace(beside, path)
