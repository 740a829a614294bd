"""What a forward pass keeps for the backward pass, counted on the model's own code without weights or numbers.

The model with one layer, and with two, goes through a forward pass of tensors that have shapes and no memory, and
every tensor that autograd saves is noted. Two lengths of the row tell what grows with it (activations) from what does
not (copies of weights in half precision). Attention is counted as kernels of FlashAttention's kind keep it: queries,
keys, values, the output, and one number a query and head (arXiv 2205.14135, section 3.1).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from posttrain.adapters import without_weights, wrap
from posttrain.errors import UserError

if TYPE_CHECKING:
    import torch

    from posttrain.config import CommonConfig

_NAME = "posttrain-plan"
_SHORT, _LONG = 64, 128


@dataclass(frozen=True)
class Saved:
    """Bytes kept for the backward pass.

    Args:
        of_token_in_layer: a token and layer.
        of_token_outside: a token, before the first layer and behind the last.
        of_layer: a layer, whatever the tokens: weights in autocast's type.
        outside: as of_layer, for what is outside of the layers.
        is_counted: on the model's own code; False: by the formula for a gated feed-forward network.
    """

    of_token_in_layer: float
    of_token_outside: float
    of_layer: float
    outside: float
    is_counted: bool


def saved_for_backward(
    config: CommonConfig, weights: torch.dtype, autocast: torch.dtype | None, on_gpu: bool
) -> Saved | None:
    """Count.

    Args:
        config: of the run; its model's config is read.
        weights: type that they are held in.
        autocast: type of products under autocast; None: without.
        on_gpu: where attention's output needs no copy to be laid out for the next product.

    Returns:
        The bytes; None where the model's code wants numbers on the way (routers of experts).
    """
    sizes: dict[tuple[int, int], int] = {}
    log = logging.getLogger("torch._subclasses.fake_tensor")  # it would tell of what is handled here
    before, log.disabled = log.disabled, True
    try:
        for layers in (1, 2):
            for length, size in _bytes_saved(config, layers, weights, autocast, on_gpu).items():
                sizes[layers, length] = size
    except UserError:
        return None
    except Exception:  # of whatever kind: code that nobody here has written, run in a way that it was not made for
        return None
    finally:
        log.disabled = before
    step = _LONG - _SHORT
    growth = {layers: (sizes[layers, _LONG] - sizes[layers, _SHORT]) / step for layers in (1, 2)}
    fixed = {layers: sizes[layers, _SHORT] - growth[layers] * _SHORT for layers in (1, 2)}
    in_layer, of_layer = growth[2] - growth[1], fixed[2] - fixed[1]
    return Saved(in_layer, growth[1] - in_layer, max(0.0, of_layer), max(0.0, fixed[1] - of_layer), True)


def by_formula(hidden: int, inner: int, query: int, key: int, size: int) -> Saved:
    """What a pre-norm decoder with a gated feed-forward network keeps: the two norms' inputs and outputs, both residual
    sums, queries, keys, values, attention's output, and four tensors of the inner width.

    Args:
        hidden, inner, query, key: widths of the model, of its feed-forward network, of all heads, of all key heads.
        size: bytes of a number.
    """
    return Saved(size * (7 * hidden + query + 2 * key + 4 * inner), size * 2.5 * hidden, 0.0, 0.0, False)


def _bytes_saved(config: CommonConfig, layers: int, weights: Any, autocast: Any, on_gpu: bool) -> dict[int, int]:
    """Of rows of two lengths."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from posttrain.norms import exchange_norms

    _register()
    model: Any = without_weights(config, layers)
    if model is None:
        raise UserError(f"{config.model_name_or_path}: no model can be made of its config")
    model.to(weights)
    if not on_gpu:
        exchange_norms(model)
    decoder: Any = getattr(model, model.base_model_prefix)
    model.config._attn_implementation = _NAME
    if config.use_peft:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = wrap(model, config)
    context: Any = contextlib.nullcontext() if autocast is None else torch.autocast("cpu", autocast)
    found = {}
    _contiguous_output.append(not on_gpu)
    try:
        with FakeTensorMode():
            _make_fake(model)
            model.train()
            own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
            for length in (_SHORT, _LONG):
                kept: dict[int, Any] = {}
                note = functools.partial(_note, kept, own)
                ids, positions = torch.zeros(1, length, dtype=torch.long), torch.arange(length)[None]
                with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), context:
                    decoder(input_ids=ids, position_ids=positions, use_cache=False)
                found[length] = sum(storage.nbytes() for storage in kept.values())
    finally:
        _contiguous_output.pop()
    return found


def _note(kept: dict[int, Any], own: set[int], tensor: torch.Tensor) -> torch.Tensor:
    storage = tensor.untyped_storage()
    if storage._cdata not in own:
        kept[storage._cdata] = storage  # held, so that no later one gets its number
    return tensor


def _make_fake(model: torch.nn.Module) -> None:
    """Gives a model on the meta device tensors that pass for those of a CPU; called inside of the fake mode."""
    import torch

    fakes: dict[int, Any] = {}  # tied ones stay tied
    for module in model.modules():
        for name, value in list(module._parameters.items()):
            if value is not None:
                new = torch.nn.Parameter(torch.empty(value.shape, dtype=value.dtype), value.requires_grad)
                module._parameters[name] = fakes.setdefault(id(value), new)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
        for name, value in list(vars(module).items()):
            if isinstance(value, torch.Tensor):  # such as original_inv_freq
                setattr(module, name, torch.empty(value.shape, dtype=value.dtype))


_contiguous_output: list[bool] = []


def _register() -> None:
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface

    from posttrain.recurring_sizes import compiles_for_sizes

    if _NAME in AttentionInterface._global_mapping:
        return

    class Kept(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, query: Any, key: Any, value: Any) -> Any:
            shape = (*query.shape[:3], value.shape[3])
            output = query.new_empty(shape)
            if not _contiguous_output[-1]:  # (1, T, heads, D) in memory
                output = query.new_empty(shape[0], shape[2], shape[1], shape[3]).transpose(1, 2)
            sums = query.new_empty(query.shape[:3], dtype=torch.float32)
            ctx.save_for_backward(query, key, value, output, sums)
            return output

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            raise NotImplementedError

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        dtype = value.dtype
        if _contiguous_output[-1] and compiles_for_sizes(query.device, query.dtype):  # as attention.py does it
            query, key, value = query.float(), key.float(), value.float()
        return Kept.apply(query, key, value).transpose(1, 2).to(dtype), None

    AttentionInterface.register(_NAME, attend)
    AttentionMaskInterface.register(_NAME, lambda *args, **kwargs: None)
