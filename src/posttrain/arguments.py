"""transformers' arguments of a run, with its complaints about them told before any weight is loaded."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from transformers import Trainer, TrainingArguments, get_scheduler

from posttrain.errors import UserError, install


class Arguments(TrainingArguments):
    """transformers' arguments, which show all flags of the run to trackers, as if they were its own."""

    flags: Mapping[str, Any] = {}

    def to_dict(self) -> dict[str, Any]:
        """The arguments, and the flags of the run that they do not have."""
        return {**self.flags, **super().to_dict()}


def checked_arguments(values: Mapping[str, Any], flags: Mapping[str, Any]) -> Arguments:
    """TrainingArguments that a run can be made with.

    Args:
        values: keyword arguments of TrainingArguments.
        flags: of the run.

    Raises:
        UserError: they do not fit together, or an optimizer or a package that they name is not installed.
    """
    kept = dict(values)
    # Layers are compiled here (compiled.py): transformers would compile the whole model, again and again.
    backend = kept.pop("torch_compile_backend", None)
    for name in ("torch_compile", "torch_compile_mode"):
        kept.pop(name, None)
    if "WORLD_SIZE" not in os.environ:
        kept.pop("ddp_backend", None)  # a single process has nobody to talk to, and transformers would ask it for one
    if kept.get("deepspeed") and importlib.util.find_spec("deepspeed") is None:
        raise UserError("--deepspeed needs a package that is not installed: " + install("deepspeed"))
    with _complaints_about(""):
        arguments = Arguments(**kept)
        arguments.flags = dict(flags)
    if getattr(arguments.accelerator_config, "dispatch_batches", None):
        raise UserError("--accelerator_config: dispatch_batches is not available: each process reads its own rows")
    if backend is not None and backend.upper() not in DynamoBackend.__members__:
        known = ", ".join(name.lower() for name in DynamoBackend.__members__)
        raise UserError(f"--torch_compile_backend: {backend!r} is not one of {known}")
    if arguments.fsdp and arguments.world_size == 1:
        raise UserError(
            "--fsdp shards a model over processes, and this is one; add --num_processes, or leave --fsdp out"
        )
    if arguments.train_sampling_strategy == "batch_rebalance" and arguments.world_size > 1:
        raise UserError(
            "--train_sampling_strategy batch_rebalance is for one process here; take group_by_length or random"
        )
    optim, schedule = (str(getattr(one, "value", one)) for one in (arguments.optim, arguments.lr_scheduler_type))
    with _complaints_about(f"--optim {optim}: "):
        _try_optimizer(arguments, optim)
    settings = arguments.lr_scheduler_kwargs
    with _complaints_about(f"--lr_scheduler_type {schedule} with --lr_scheduler_kwargs {settings}: "):
        _try_schedule(schedule, settings)
    return arguments


@contextlib.contextmanager
def _complaints_about(what: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, ImportError, OSError) as error:
        said = _first_sentences(error)
        about = "--accelerator_config: " if said.startswith("AcceleratorConfig") else what
        raise UserError(f"{about}{said}") from error


def _first_sentences(error: Exception) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())[:400] or type(error).__name__


def _try_optimizer(arguments: TrainingArguments, name: str) -> None:
    """Look the optimizer up; those that want a model, which is not there yet, can be asked for their package only."""
    try:
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(arguments)
    except ValueError:
        if not name.startswith(("galore", "apollo", "lomo", "adalomo")):
            raise
        return
    if kind.__module__.startswith("torch.optim"):
        kind([torch.nn.Parameter(torch.zeros(1))], **settings)


def _try_schedule(name: str, settings: dict[str, Any] | str | None) -> None:
    """Make the schedule for an optimizer of nothing."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    get_scheduler(name, optimizer, num_warmup_steps=0, num_training_steps=100, scheduler_specific_kwargs=settings or {})
