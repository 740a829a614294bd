"""Weights laid out for many small products, for as long as a CPU samples.

A step of sampling multiplies a few dozen rows by every weight of the model. Laid out in blocks once, before the first
step, the products of oneDNN with so few rows take about half the time of those with the weights as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn

# Smaller weights gain nothing; and what is held twice for the time is kept below a GiB.
_SMALLEST, _MOST = 2**17, 2**28


@contextlib.contextmanager
def prepacked(model: nn.Module, num_rows: int) -> Iterator[None]:
    """Inside, large linear layers in float32 on a CPU multiply by a copy of their weights. These must stay as they are.

    Args:
        model: whose layers they are.
        num_rows: rows that most products will have.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear) and _gains(module)]
    if sum(layer.weight.numel() for layer in layers) > _MOST:
        layers = []
    for layer in layers:
        layer.forward = _with_packed_weight(layer, num_rows)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # that of the class comes back


def _gains(layer: nn.Linear) -> bool:
    weight = layer.weight
    plain = weight.device.type == "cpu" and weight.dtype == torch.float32 and "forward" not in vars(layer)
    available = torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)
    return plain and available and weight.numel() >= _SMALLEST and not torch.is_autocast_enabled("cpu")


def _with_packed_weight(layer: nn.Linear, num_rows: int) -> Callable[[torch.Tensor], torch.Tensor]:
    packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), num_rows)
    bias = None if layer.bias is None else layer.bias.detach()

    def forward(rows: torch.Tensor) -> torch.Tensor:
        # Autocast may be switched on within the model's own forward pass.
        if rows.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return type(layer).forward(layer, rows)
        return torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")

    return forward
