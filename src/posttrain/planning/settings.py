"""What a run decides by hardware and by its launcher: precision, recomputed activations, processes, what is spread."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.config.accelerate_file import accelerate_settings
from posttrain.config.parse import LaunchOptions
from posttrain.planning.devices import Device

if TYPE_CHECKING:
    import torch
    from transformers import TrainingArguments

    from posttrain.config import CommonConfig

ALL = frozenset({"weights", "gradients", "optimizer"})
_NOBODY = (frozenset[str](), "", "")
_OF_ZERO = {1: frozenset({"optimizer"}), 2: frozenset({"optimizer", "gradients"}), 3: ALL}


@dataclass(frozen=True)
class Decided:
    """What flags leave open, decided.

    Args:
        autocast: type of products; None: that of the weights.
        recomputed: activations are.
        processes: that train, over all machines.
        here: of them on one machine.
        sharded: what is spread over them.
        sharder: "fsdp" or "zero", which spreads it; empty: nobody.
        how_sharded: in words; empty where nothing is.
        words: what was decided, and why; for people.
    """

    autocast: torch.dtype | None
    recomputed: bool
    processes: int
    here: int
    sharded: frozenset[str]
    sharder: str
    how_sharded: str
    words: dict[str, str]


def decide(config: CommonConfig, launch: LaunchOptions, arguments: TrainingArguments, device: Device) -> Decided:
    """As training decides it, for a device that need not be here.

    Args:
        config: of the run.
        launch: of the run.
        arguments: transformers', made on this machine.
        device: that it is planned for.
    """
    import torch

    on_gpu = device.kind == "cuda"
    half: torch.dtype | None = None
    if on_gpu and config.fp16:
        half = torch.float16
    elif arguments.bf16 if not on_gpu else device.bf16 if config.bf16 is None else config.bf16:
        half = torch.bfloat16
    recomputed = config.recomputes_activations(on_gpu)
    file = _file_of(launch)
    settings: dict[Any, Any] = accelerate_settings(file) if file is not None else {}
    processes = launch.processes()
    if processes is None:
        here_gpus = torch.cuda.device_count() if device.is_here and on_gpu else 0
        processes = here_gpus or (int(settings.get("num_processes") or 1) if on_gpu else 1)
    machines = launch.num_machines or int(settings.get("num_machines") or 1)
    sharded, sharder, how = _sharding(config, settings) if processes > 1 else _NOBODY
    given = {"precision": config.bf16 is not None or bool(config.fp16)}
    given["activations"] = config.gradient_checkpointing is not None or config.recompute != "layers"
    why = {name: "as the flags say" if is_given else "by hardware" for name, is_given in given.items()}
    products = "float32" if half is None else str(half).removeprefix("torch.")
    words = {
        "device": device.name if device.is_here else f"{device.name}, which is not here",
        "precision": f"products in {products}, weights in {config.dtype or 'auto'} ({why['precision']})",
        "activations": f"{_activations(config) if recomputed else 'kept'} ({why['activations']})",
        "processes": f"{processes}" + (f", {how}" if how else ""),
    }
    return Decided(half, recomputed, processes, max(1, processes // machines), sharded, sharder, how, words)


def _activations(config: CommonConfig) -> str:
    return {
        "layers": "recomputed",
        "all_but_attention": "recomputed but for attention",
        "elementwise": "recomputed where that is cheap",
    }[config.recompute]


def _file_of(launch: LaunchOptions) -> Path | None:
    from posttrain.launch import accelerate_file

    if launch.accelerate_config in (None, "single_gpu", "cpu") and launch.config_file is None:
        return accelerate_file(launch) if (launch.num_processes or 1) > 1 else None
    return accelerate_file(launch)


def _sharding(config: CommonConfig, settings: dict[Any, Any]) -> tuple[frozenset[str], str, str]:
    """What is spread, by whom, and that in words."""
    kind = settings.get("distributed_type")
    if kind == "FSDP" or config.fsdp:
        own = settings.get("fsdp_config") or {}
        strategy = str(own.get("fsdp_sharding_strategy", "FULL_SHARD")).upper()
        reshards = str(own.get("fsdp_reshard_after_forward", strategy)).upper()
        if "GRAD_OP" in reshards or reshards == "FALSE":
            return _OF_ZERO[2], "fsdp", "FSDP spreads gradients and optimizer"
        if "NO_SHARD" in (strategy, reshards):
            return _NOBODY
        return ALL, "fsdp", "FSDP spreads weights, gradients and optimizer"
    if kind == "DEEPSPEED" or config.deepspeed:
        given = config.deepspeed
        if isinstance(given, str) and Path(given).is_file():
            given = json.loads(Path(given).read_text(encoding="utf-8"))
        own = settings.get("deepspeed_config") or {}
        inner = given.get("zero_optimization", {}).get("stage") if isinstance(given, dict) else None
        stage = int(inner if inner is not None else own.get("zero_stage", 0))
        if stage in _OF_ZERO:
            return _OF_ZERO[stage], "zero", f"ZeRO {stage} spreads {' and '.join(sorted(_OF_ZERO[stage]))}"
    return _NOBODY
