"""Sizes that recur, for kernels that are made anew for each size.

On a CPU, products in half precision go to oneDNN, which compiles code for every size of a product when it first meets
it: milliseconds, where the product of a small model takes less than one. Packed rows are hardly ever of the same length
twice, so every step would compile for all layers again. Rows and targets are therefore filled up to a multiple of
MULTIPLE: soon all sizes are known.
"""

from __future__ import annotations

import torch

from posttrain.batch import PackedBatch, Segments

MULTIPLE = 64


def compiles_for_sizes(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products are compiled for their sizes.

    Args:
        device: of the model.
        dtype: of its weights, for where autocast is not on.
    """
    if device.type != "cpu":
        return False
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
    return dtype in (torch.bfloat16, torch.float16)


def num_filling(size: int) -> int:
    """What is missing to a multiple."""
    return -size % MULTIPLE


def filled(batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor, Segments]:
    """Token ids, positions and segments of a row, with a segment behind it that nothing attends to and that is not
    looked at.

    Args:
        batch: packed.
    """
    ids, positions, segments = batch.input_ids, batch.position_ids, batch.segments
    missing = num_filling(len(ids))
    if missing == 0:
        return ids, positions, segments
    nothing = ids.new_zeros(missing)
    return torch.cat([ids, nothing]), torch.cat([positions, nothing]), segments.with_document(missing)
