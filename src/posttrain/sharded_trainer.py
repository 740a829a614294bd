"""Models whose weights FSDP or DeepSpeed spreads over processes: one whole model in each folder, and checkpoints that
are really taken up again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedDataParallelKwargs, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp._runtime_utils import _reshard
from transformers import Trainer

from posttrain.errors import UserError
from posttrain.sharding import is_sharded, mixed_precision_of_fsdp, skeleton, uses_fsdp, whole_state_dict

# A process's part of the weights and of the optimizer's state under FSDP's first version.
PART_FILE = "fsdp_part_{rank}_of_{world_size}.pt"
SCHEDULER_FILE = "scheduler.pt"


class ShardedTrainer(Trainer):
    """What transformers and accelerate do for FSDP and DeepSpeed, where that does not hold.

    Their model folders hold tied weights twice (DeepSpeed), or are not written in one piece (FSDP). accelerate's
    checkpoints of FSDP's first version forget the optimizer (it reads into what the optimizer holds, which before its
    first step is nothing), fail where a parameter lies in one process alone, and on CPUs hand out memory that has been
    freed. Here each process keeps its own part, as it is. And in mixed precision its FSDP rounds what a model gives, or
    has as buffers, and adds gradients up in half precision.
    """

    model: Any

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if is_sharded(self.args):
            self._skeleton = skeleton(self.model)

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        args = super()._build_accelerator_args(**kwargs)
        for handler in args["kwargs_handlers"]:
            if isinstance(handler, DistributedDataParallelKwargs):
                handler.gradient_as_bucket_view = True  # gradients are sent from where they are, and not held twice
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.args.mixed_precision)
        if kind is not None and uses_fsdp(self.args):
            plugin = args.get("fsdp_plugin") or FullyShardedDataParallelPlugin()
            if plugin.mixed_precision_policy is None:  # else the configuration has one
                plugin.mixed_precision_policy = mixed_precision_of_fsdp(plugin.fsdp_version, kind)
            args["fsdp_plugin"] = plugin
        return dict(args)

    @property
    def _keeps_parts(self) -> bool:
        return bool(self.is_fsdp_enabled and not self.accelerator.is_fsdp2)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves one whole model folder, however the weights are spread; called by all processes."""
        if not is_sharded(self.args):
            super().save_model(output_dir, _internal_call)
            return
        state = whole_state_dict(self.model, self._skeleton if self.args.should_save else None)
        if self.args.should_save:
            wrapped, self.model = self.model, self._skeleton
            self._save(output_dir or self.args.output_dir, state)
            self.model = wrapped

    def _part_file(self, folder: str) -> Path:
        return Path(folder) / PART_FILE.format(rank=self.args.process_index, world_size=self.args.world_size)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self._keeps_parts:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        weights = {name: parameter.detach().cpu() for name, parameter in self.model_wrapped.named_parameters()}
        torch.save({"weights": weights, "optimizer": self.optimizer.state_dict()}, self._part_file(output_dir))
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self._keeps_parts:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        elif not self._part_file(resume_from_checkpoint).is_file():
            raise UserError(
                f"--resume_from_checkpoint {resume_from_checkpoint} has no "
                f"{self._part_file(resume_from_checkpoint).name}: it was written by another number of processes, or "
                "otherwise than with fsdp1; take the same as then, or start anew",
                page="distributed.md",
            )

    def _load_best_model(self) -> None:
        if self._keeps_parts:
            self._load_part(self.state.best_model_checkpoint)
        else:
            super()._load_best_model()

    def _load_part(self, checkpoint: str) -> dict[str, Any]:
        """Takes this process's weights back; returns all of its part."""
        part = torch.load(self._part_file(checkpoint), weights_only=True)
        # After an evaluation the outermost unit is still whole: what is then given to its part would not be seen.
        for unit in FullyShardedDataParallel.fsdp_modules(self.model_wrapped):
            has_passed = unit._is_root is not None  # before its first pass nothing is whole
            if has_passed and unit._handle is not None and not unit._handle.needs_unshard():
                _reshard(unit, unit._handle, True)
        with torch.no_grad():
            for name, parameter in self.model_wrapped.named_parameters():
                parameter.copy_(part["weights"][name])
        return part

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self._keeps_parts:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        part = self._load_part(checkpoint)
        self.optimizer.load_state_dict(part["optimizer"])
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_FILE, weights_only=True))
