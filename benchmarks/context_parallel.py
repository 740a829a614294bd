"""What torch's context parallelism, which accelerate's `cp_size` switches on, makes of attention by segments.

`python benchmarks/context_parallel.py` starts two processes on this machine's CPU. Each holds half of a row, as
accelerate deals it out, and calls attention: plainly and causally, with a mask, and by segments. Each way is compared
with the whole row in one process.
"""

from __future__ import annotations

import os
import socket

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.experimental import context_parallel
from torch.distributed.tensor.experimental._attention import context_parallel_unshard
from torch.nn.functional import scaled_dot_product_attention

from posttrain.attention import attention
from posttrain.batch import NO_PARENT, Segments

TOKENS, HEADS, WIDTH = 64, 2, 8
SEGMENTS = Segments((20, 28, 16), (NO_PARENT, NO_PARENT, NO_PARENT))


def causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return scaled_dot_product_attention(query, key, value, is_causal=True)


def masked(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The mask of the documents, which stands beside the whole row."""
    document = torch.arange(3).repeat_interleave(torch.tensor(SEGMENTS.lengths))
    mask = (document[:, None] == document[None]) & torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
    return scaled_dot_product_attention(query, key, value, attn_mask=mask)


def by_segments(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return attention(torch.nn.Module(), query, key, value, None, segments=SEGMENTS)[0].transpose(1, 2)


def worker(rank: int, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("cp",))
    for way in (causal, masked, by_segments):
        torch.manual_seed(0)
        parts = [torch.randn(1, HEADS, TOKENS, WIDTH) for _ in range(3)]
        expected = way(*parts)
        try:
            with context_parallel(mesh, buffers=parts, buffer_seq_dims=[2, 2, 2], no_restore_buffers=set(parts)):
                whole = context_parallel_unshard(mesh, [way(*parts)], [2])[0]
            outcome = f"differs by {(whole - expected).abs().max().item():.2g}"
        except Exception as error:  # of whatever kind: that is what is looked for
            outcome = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
        if rank == 0:
            print(f"{way.__name__}: {outcome}", flush=True)
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(worker, (port,), nprocs=2)
