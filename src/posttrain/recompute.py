"""What gradient checkpointing computes again in the backward pass: whole layers, or what is cheap of them.

transformers checkpoints whole decoder layers: of each its input is kept, and the backward pass runs it once more. With
torch's selective checkpoints the outputs of some operations are kept beside the input, and the second run finds
them there. A layer that drops out attention weights runs its attention again in any case: it draws random numbers,
and the second run has to draw the same ones, in the same order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers import TrainerCallback

from posttrain.config import CommonConfig
from posttrain.config.rules import OF_TRANSFORMERS

# Operations of torch, by kind. Attention is computed by one of the kernels that keep no scores; the plain one, which
# multiplies matrices of scores by bmm, is computed again.
_ATTENTION = {
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_flash_attention_forward",
    "torch_attn::_varlen_attn",
    "posttrain::attend_in_parts",
}
_PRODUCTS = {"aten::mm", "aten::addmm", "aten::_scaled_mm", "aten::_grouped_mm", "aten::_scaled_grouped_mm"}
KEPT: dict[str, set[str]] = {"layers": set(), "all_but_attention": _ATTENTION, "elementwise": _ATTENTION | _PRODUCTS}


def recompute_less(model: torch.nn.Module, what: str, settings: dict[str, Any]) -> None:
    """Has the layers of a model whose checkpoints are on keep more than their input.

    Args:
        model: of transformers, with or without wrappers and adapters.
        what: a key of KEPT.
        settings: further ones of torch.utils.checkpoint.checkpoint.
    """
    run = functools.partial(checkpoint, **{"use_reentrant": False, **settings}, context_fn=_contexts(KEPT[what]))
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module._gradient_checkpointing_func = run  # type: ignore[assignment]


def recompute_callbacks(config: CommonConfig) -> list[TrainerCallback]:
    """What `--recompute` adds to a trainer: nothing where whole layers are computed again.

    Args:
        config: of the run.
    """
    if config.recompute == "layers":
        return []
    given = config.gradient_checkpointing_kwargs or {}
    return [_RecomputeLess(config.recompute, {k: v for k, v in given.items() if k not in OF_TRANSFORMERS})]


class _RecomputeLess(TrainerCallback):
    """Acts when transformers' trainer has switched the checkpoints of the model on."""

    def __init__(self, what: str, settings: dict[str, Any]):
        self.what, self.settings = what, settings

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        recompute_less(kwargs["model"], self.what, self.settings)


def _contexts(kept: set[str]) -> Callable[[], tuple[Any, Any]]:
    def policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        keeps = operation.name() in kept and not _draws(operation, args, kwargs)
        return CheckpointPolicy.MUST_SAVE if keeps else CheckpointPolicy.PREFER_RECOMPUTE

    return functools.partial(create_selective_checkpoint_contexts, policy)


def _draws(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation draws random numbers: it has a probability of dropout, above 0."""
    return any(value > 0 for value in _of_dropout(operation, args, kwargs))


def _of_dropout(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[float]:
    for index, argument in enumerate(operation._schema.arguments):
        if argument.name == "dropout_p":
            default = argument.default_value or 0.0
            yield kwargs.get("dropout_p", args[index] if index < len(args) else default)
