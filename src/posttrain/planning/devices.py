"""What a plan assumes of hardware: memory, and how fast it is. Of this machine, or of a GPU that is named."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from posttrain.config import suggestion
from posttrain.environment import memory
from posttrain.errors import UserError
from posttrain.machine import has_bf16

if TYPE_CHECKING:
    from posttrain.config import CommonConfig

_GIB = 2**30
# Peak of dense products in bfloat16 (float16 where there is none) and bytes a second of memory, from the makers' data
# sheets. What is reached of the peak is MODEL_FLOPS_SHARE, of the memory's speed BANDWIDTH_SHARE: assumptions, which a
# probe replaces.
GPUS: dict[str, tuple[float, float, float, bool]] = {
    # name: GiB, FLOP/s, bytes/s, bfloat16
    "t4": (15.0, 65e12, 0.30e12, False),
    "v100-16gb": (16.0, 125e12, 0.90e12, False),
    "rtx3090": (24.0, 71e12, 0.94e12, True),
    "rtx4090": (24.0, 165e12, 1.01e12, True),
    "l4": (22.5, 121e12, 0.30e12, True),
    "a10": (22.5, 125e12, 0.60e12, True),
    "l40s": (44.5, 362e12, 0.86e12, True),
    "a6000": (47.5, 155e12, 0.77e12, True),
    "a100-40gb": (39.5, 312e12, 1.55e12, True),
    "a100-80gb": (79.0, 312e12, 2.00e12, True),
    "h100": (79.0, 989e12, 3.35e12, True),
    "h200": (139.0, 989e12, 4.80e12, True),
    "b200": (178.0, 2250e12, 8.00e12, True),
}
MODEL_FLOPS_SHARE = 0.35
BANDWIDTH_SHARE = 0.5
_FLOAT32_SHARE = 0.25  # of the peak in half precision, with and without TensorFloat-32 about
# One core of a server with AVX-512 in whole training steps in float32; fitted to the runs of benchmarks/README.md.
CPU_FLOPS_OF_A_CORE = 50e9
CPU_BYTES_A_SECOND = 10e9
# What the CUDA context and the allocator's gaps take beside the tensors that torch counts.
CONTEXT_BYTES, GAPS = 0.8 * _GIB, 0.06


@dataclass(frozen=True)
class Device:
    """Where a process trains.

    Args:
        name: in words.
        kind: "cuda" or "cpu".
        memory: bytes; of a CPU, those of the machine, which all processes share.
        flops: operations a second that whole training steps reach.
        bandwidth: bytes a second that sampling reaches.
        bf16: trains in bfloat16 unless told otherwise.
        is_here: it is this machine's.
    """

    name: str
    kind: str
    memory: float
    flops: float
    bandwidth: float
    bf16: bool
    is_here: bool

    @property
    def usable(self) -> float:
        """Bytes that tensors may take (of a CPU: that the process may)."""
        return (self.memory - CONTEXT_BYTES) * (1 - GAPS) if self.kind == "cuda" else self.memory


def device_of(config: CommonConfig, gpu: str | None = None, gib: float | None = None) -> Device:
    """The device that a run is planned for.

    Args:
        config: of the run.
        gpu: a key of GPUS; None: this machine's.
        gib: its memory, where that is another one.

    Raises:
        UserError: no such GPU is known.
    """
    import torch

    if gpu is None and torch.cuda.is_available() and not config.use_cpu:
        about = torch.cuda.get_device_properties(0)
        known = _key_of(about.name)
        size, flops, bandwidth, _ = GPUS[known or "a100-40gb"]
        name = about.name if known else f"{about.name} (its speed is not known: taken as that of an A100)"
        found = Device(name, "cuda", about.total_memory, flops, bandwidth, has_bf16(torch), True)
    elif gpu is None:
        threads = torch.get_num_threads()
        size, _ = memory(None)
        name = f"this machine's CPU, {threads} thread{'s' * (threads > 1)}"
        return Device(
            name, "cpu", gib * _GIB if gib else size, CPU_FLOPS_OF_A_CORE * threads, CPU_BYTES_A_SECOND, False, True
        )
    else:
        key = gpu.lower().replace(" ", "")
        if key not in GPUS:
            raise UserError(f"--gpu {gpu}: not one of {', '.join(GPUS)}{suggestion(key, GPUS)}")
        size, flops, bandwidth, bf16 = GPUS[key]
        found = Device(key.upper(), "cuda", size * _GIB, flops, bandwidth, bf16, False)
    half = config.bf16 or config.fp16 or (config.bf16 is None and found.bf16) or config.dtype in ("bfloat16", "float16")
    reached = found.flops * (MODEL_FLOPS_SHARE if half else MODEL_FLOPS_SHARE * _FLOAT32_SHARE)
    room = gib * _GIB if gib else found.memory
    return Device(
        found.name, "cuda", room, reached, found.bandwidth * BANDWIDTH_SHARE, found.bf16, found.is_here and gpu is None
    )


def _key_of(name: str) -> str | None:
    """The key of GPUS that a driver's name of a GPU goes with."""
    words = re.sub(r"rtx (?=\d)", "rtx", re.sub(r"[^a-z0-9]+", " ", name.lower()))
    # As words: an A100 is no A10, and an L40S no L4. A10G and GH200 are near enough.
    found = [key for key in GPUS if re.search(rf"\bg?{key.partition('-')[0]}g?\b", words)]
    exact = [key for key in found if key.partition("-")[2] in words.split()]
    return next(iter(exact or found), None)
