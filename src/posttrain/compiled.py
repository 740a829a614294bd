"""Decoder layers and the output head compiled by torch.compile, once for rows of any length.

A whole model would be compiled again for each number of segments and for much of what stands around its layers. The
layers of a model are alike, so one compilation serves all of them, and their shapes are dynamic. Attention stays as it
is: its kernels are torch's, and how a row is cut up is no part of what is compiled.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from posttrain import attention
from posttrain.compiled_head import compiled_head_statistics
from posttrain.config import CommonConfig
from posttrain.logprobs import TargetHead

logger = logging.getLogger(__name__)


def compile_as_asked(model: torch.nn.Module, config: CommonConfig, recomputes: bool) -> None:
    """Compiles the layers of a model where the flags ask for that.

    Args:
        model: with its adapters, before anything wraps it.
        config: of the run.
        recomputes: whether activations of layers are computed again in the backward pass.
    """
    if config.compiles:
        backend = config.torch_compile_backend or "inductor"
        compile_layers(model, backend, config.torch_compile_mode, recomputes)


def compile_layers(model: torch.nn.Module, backend: str, mode: str | None = None, recomputes: bool = False) -> None:
    """Compiles the decoder layers and the head of a model at their next call. Names of parameters, and saving, stay as
    they were.

    Args:
        model: of transformers, with or without adapters.
        backend: of torch.compile.
        mode: of torch.compile.
        recomputes: whether the layers are checkpoints. These are made within a layer's own forward pass (transformers
            5.23), where attention would have it left uncompiled: then its parts are compiled, each by itself.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        logger.warning("--torch_compile: %s has no layers to compile; it is trained as it is.", type(model).__name__)
        return
    AttentionInterface.register(attention.NAME, torch.compiler.disable(attention.attention))
    for layer in layers:
        for part in layer.children() if recomputes else [layer]:
            part.compile(dynamic=True, backend=backend, mode=mode)
    for head in {module for module in model.modules() if isinstance(module, TargetHead)}:
        head._asked.statistics = compiled_head_statistics(backend, mode)


@contextlib.contextmanager
def as_written(model: torch.nn.Module) -> Iterator[None]:
    """Inside, no layer of a model is compiled: sampling has shapes of its own, and would have all compiled again."""
    compiled: list[tuple[Any, Any]] = [
        (module, module._compiled_call_impl) for module in model.modules() if module._compiled_call_impl is not None
    ]
    for module, _ in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in compiled:
            module._compiled_call_impl = call
