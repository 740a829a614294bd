"""Weights that FSDP or DeepSpeed spread over processes: who does it, and how they come together again."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, MixedPrecision, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, Replicate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainingArguments

# What wrappers put into the names of parameters.
_WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")


def is_sharded(arguments: TrainingArguments) -> bool:
    """Whether FSDP or DeepSpeed will place the weights, by flag or by the launcher's configuration."""
    launched = any(os.environ.get(f"ACCELERATE_USE_{name}") == "true" for name in ("FSDP", "DEEPSPEED"))
    return launched or bool(arguments.fsdp or arguments.deepspeed)


def spreads_weights(arguments: TrainingArguments) -> bool:
    """Whether a process will hold a part of the weights only: FSDP, or ZeRO's third stage."""
    plugin = getattr(arguments, "deepspeed_plugin", None)
    return uses_fsdp(arguments) or (plugin is not None and plugin.zero_stage == 3)


def uses_fsdp(arguments: TrainingArguments) -> bool:
    """Whether FSDP is asked for, by flag or by the launcher's configuration."""
    return bool(arguments.fsdp) or os.environ.get("ACCELERATE_USE_FSDP") == "true"


def allow_fsdp_on_cpu(arguments: TrainingArguments) -> None:
    """Makes accelerate shard on CPUs, too, where it would silently train with DDP: it knows FSDP on accelerators only,
    and torch on gloo as well. Called between the making of the arguments and that of the trainer.
    """
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    if not uses_fsdp(arguments) or arguments.distributed_state.distributed_type != DistributedType.MULTI_CPU:
        return
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    PartialState._shared_state["device"] = torch.device("cpu")  # torch's FSDP compares; a CPU has no number there
    # Sending rank 0's weights to the others wants an accelerator; every process reads the same ones.
    os.environ["FSDP_SYNC_MODULE_STATES"] = "false"
    if arguments.fsdp_plugin_args:
        arguments.fsdp_plugin_args["sync_module_states"] = False


def mixed_precision_of_fsdp(version: int, kind: torch.dtype) -> MixedPrecision | MixedPrecisionPolicy:
    """A pass with weights in half precision, and in float32 what must not be rounded: what a model gives (log-probs),
    its buffers (the frequencies of rotary embeddings, multiplied by positions in the thousands), and sums of gradients
    over processes.

    Args:
        version: of FSDP, 1 or 2.
        kind: half precision.
    """
    if version == 1:
        return MixedPrecision(param_dtype=kind, reduce_dtype=torch.float32, buffer_dtype=torch.float32)
    return MixedPrecisionPolicy(param_dtype=kind, reduce_dtype=torch.float32)


@contextlib.contextmanager
def read_whole(arguments: TrainingArguments) -> Iterator[None]:
    """While models are read and tried out: transformers would leave each process a part of the weights already then,
    where ZeRO's third stage is to come."""
    plugin = getattr(arguments, "deepspeed_plugin", None)
    if plugin is None:
        yield
        return
    from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

    settings = getattr(arguments, "hf_deepspeed_config", None) or plugin.dschf
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(settings)


class WholePolicy:
    """The policy to sample from, in one piece. Where each process holds all weights that is the policy itself; else a
    replica, made before the weights are spread and empty, which all processes fill together for as long as they sample:
    each may then take as many passes as its completions need.

    Args:
        model: the policy with its adapters, not yet wrapped.
        spread: whether its weights will be.
        device: where to sample.
        half: type of products in mixed precision, in which a replica has its weights, as FSDP and DeepSpeed have them
            in a pass; None: that of the weights.
    """

    def __init__(self, model: nn.Module, spread: bool, device: torch.device, half: torch.dtype | None = None):
        self._replica = _emptied(model, device, half) if spread else None

    @contextlib.contextmanager
    def of(self, policy: nn.Module) -> Iterator[nn.Module]:
        """The policy as it is now, its memory given back at the end; entered by all processes.

        Args:
            policy: the trained model, spread or not.
        """
        if self._replica is None:
            yield policy
            return
        own = dict(self._replica.named_parameters())
        try:
            with torch.no_grad():
                for name, whole in whole_parameters(policy):
                    _allocate(own[name]).copy_(whole)
                buffers = dict(_saved_buffers(self._replica))
                for name, buffer in _saved_buffers(policy):
                    buffers[name].copy_(buffer)
            yield self._replica
        finally:
            for parameter in own.values():
                _free(parameter)


def _emptied(model: nn.Module, device: torch.device, half: torch.dtype | None) -> nn.Module:
    """A copy of an unwrapped model on a device, its parameters without memory, and those in float32 in half precision
    where that is given. Quantised ones, which FSDP leaves whole, are copied."""
    own: dict[int, Any] = {id(buffer): buffer.detach().to(device, copy=True) for buffer in model.buffers()}
    for parameter in model.parameters():
        if type(parameter) is nn.Parameter:
            kind = half if parameter.dtype == torch.float32 else None
            empty = torch.empty_like(parameter, device=device, dtype=kind)
            own[id(parameter)] = nn.Parameter(empty, requires_grad=False)
            _free(own[id(parameter)])
    return copy.deepcopy(model, own)


def _allocate(parameter: nn.Parameter) -> nn.Parameter:
    storage = parameter.untyped_storage()
    if not storage.nbytes():
        storage.resize_(parameter.numel() * parameter.element_size())
    return parameter


def _free(parameter: nn.Parameter) -> None:
    if type(parameter) is nn.Parameter:
        parameter.untyped_storage().resize_(0)


def spread_frozen(model: PreTrainedModel, device: torch.device, half: torch.dtype | None = None) -> None:
    """Spreads a frozen model over all processes in place: of each layer a process keeps its part, and has the whole for
    the time of that layer in a forward pass, which all processes take together. By torch's FSDP2, whatever spreads the
    policy: it asks for neither an optimizer nor an engine.

    Args:
        model: on the CPU, or on the device.
        device: of this process.
        half: type of weights in a pass, as the policy has them in mixed precision; None: their own.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    precision = MixedPrecisionPolicy(param_dtype=half)
    for module in [one for one in model.modules() if type(one).__name__ in (model._no_split_modules or ())]:
        fully_shard(module, mesh=mesh, mp_policy=precision)
    fully_shard(model, mesh=mesh, reshard_after_forward=True, mp_policy=precision)


def own_part(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """What this process keeps of a tensor that it has in one piece.

    Args:
        tensor: the same in all processes.
        like: one of its shape, spread or not.
    """
    if not isinstance(like, DTensor):
        return tensor
    mesh = like.device_mesh
    whole = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return local_part(whole.redistribute(mesh, like.placements))


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """What is here of a tensor of `spread_frozen`, or the tensor itself; sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_parameters(model: nn.Module, as_trained: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and value of every parameter in one piece, layer by layer; called, and read to the end, by all processes.

    Args:
        model: wrapped by FSDP or DeepSpeed, or whole.
        as_trained: the weights in float32 that DeepSpeed trains in mixed precision, in place of what it makes of them
            for products.
    """
    units = {name: module for name, module in model.named_modules() if isinstance(module, FullyShardedDataParallel)}
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # after a pass without gradients the last one is whole, in its type of products
    if not units:
        for name, parameter in model.named_parameters():
            if as_trained and (trained := _trained_by_deepspeed(parameter)) is not None:
                yield _plain(name), trained
                continue
            with _gathered(parameter):
                yield _plain(name), parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.data
    for prefix, unit in units.items():
        inner = tuple(_plain(f"{other}.") for other in units if other != prefix and other.startswith(prefix))
        with FullyShardedDataParallel.summon_full_params(unit, recurse=False, writeback=False):
            for name, parameter in unit.named_parameters(prefix=prefix):
                if not _plain(name).startswith(inner):
                    yield _plain(name), parameter.data


def whole_state_dict(model: nn.Module, like: nn.Module | None) -> dict[str, torch.Tensor]:
    """What a model folder holds of a model that FSDP or DeepSpeed has spread, on the CPU; called by all processes.

    Args:
        model: wrapped.
        like: its skeleton, whose types the weights get (mixed precision trains on wider ones); None: this process does
            not want the state, and gets an empty one.
    """
    state = {}
    types = {} if like is None else {name: parameter.dtype for name, parameter in like.named_parameters()}
    for name, whole in whole_parameters(model, as_trained=True):
        if like is not None:
            state[name] = whole.detach().to("cpu", types[name], copy=True)
    if like is not None:
        state |= {name: buffer.to("cpu", copy=True) for name, buffer in _saved_buffers(model)}
    return state


def _saved_buffers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and value of every buffer that a model folder holds; they are whole in each process."""
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(prefix, recurse=False):
            if name.rpartition(".")[2] not in module._non_persistent_buffers_set:
                yield _plain(name), buffer.detach()


def skeleton(model: nn.Module) -> nn.Module:
    """A copy of an unwrapped model without its weights. What saves a whole state goes by its modules: asking those of
    a wrapped model for theirs, in one process, would wait for the others."""
    empty: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    empty |= {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    return copy.deepcopy(model, empty)


def _gathered(parameter: nn.Parameter) -> contextlib.AbstractContextManager[Any]:
    if not hasattr(parameter, "ds_id"):
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter])


def _trained_by_deepspeed(parameter: nn.Parameter) -> torch.Tensor | None:
    """The weight in float32, in one piece, that a parameter in half precision is rounded from."""
    is_trained = any(hasattr(parameter, name) for name in ("_z3_optimizer", "_hp_mapping"))
    if not is_trained or parameter.dtype == torch.float32 or not parameter.requires_grad:
        return None
    from deepspeed.utils import safe_get_full_fp32_param

    trained: torch.Tensor | None = safe_get_full_fp32_param(parameter)
    return trained


def _plain(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name.removeprefix("module.")
