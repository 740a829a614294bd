"""Weights laid out for many small products, for as long as a CPU samples.

A step of sampling multiplies a few dozen rows by every weight of the model. A linear layer holds its weight as
(outputs, inputs), which a product with few rows has to turn around each time; here it is turned once. And layers that
are given the same rows one after the other, as those of queries, keys and values are, become one product, which is cut
up.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Iterator, Sequence

import torch
from torch import nn

# Smaller weights gain nothing; and what is held twice for the time is kept below a GiB.
_SMALLEST, _MOST = 2**14, 2**28


@contextlib.contextmanager
def prepacked(model: nn.Module) -> Iterator[None]:
    """Inside, large linear layers in float32 on a CPU multiply by a copy of their weights, from their second call on;
    the first one, which goes over the prompts, shows which of them belong together. Weights must stay as they are.

    Args:
        model: whose layers they are.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear) and _gains(module)]
    if sum(layer.weight.numel() for layer in layers) > _MOST:
        layers = []
    layout = _Layout()
    for layer in layers:
        layer.forward = functools.partial(layout.forward, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # that of the class comes back


def _gains(layer: nn.Linear) -> bool:
    weight = layer.weight
    plain = weight.device.type == "cpu" and weight.dtype == torch.float32 and "forward" not in vars(layer)
    return plain and weight.numel() >= _SMALLEST and not torch.is_autocast_enabled("cpu")


class _Layout:
    """Which layers are one product."""

    def __init__(self) -> None:
        self._groups: list[list[nn.Linear]] = []
        self._group_of: dict[nn.Linear, int] = {}
        self._last: weakref.ref[torch.Tensor] | None = None  # what the layer before was given
        self._products: dict[int, _Product] = {}

    def forward(self, layer: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
        # Autocast may be switched on within the model's own forward pass.
        if rows.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return type(layer).forward(layer, rows)
        if layer not in self._group_of:
            self._note(layer, rows)
            return type(layer).forward(layer, rows)
        number = self._group_of[layer]
        if number not in self._products:
            self._products[number] = _Product(self._groups[number])
        return self._products[number](layer, rows)

    def _note(self, layer: nn.Linear, rows: torch.Tensor) -> None:
        follows = self._last is not None and self._last() is rows and len(self._groups) - 1 not in self._products
        if not follows:
            self._groups.append([])
        self._groups[-1].append(layer)
        self._group_of[layer] = len(self._groups) - 1
        self._last = weakref.ref(rows)


class _Product:
    """Rows times the weights of several layers."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self._weight = torch.cat([layer.weight.detach() for layer in layers]).t().contiguous()
        self._bias: torch.Tensor | None = None
        if any(layer.bias is not None for layer in layers):
            biases = [
                layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias for layer in layers
            ]
            self._bias = torch.cat([bias.detach() for bias in biases])
        self._sizes = [len(layer.weight) for layer in layers]
        self._place = {layer: place for place, layer in enumerate(layers)}
        self._of: tuple[torch.Tensor, int] | None = None  # the rows that have been multiplied, and their version
        self._parts: tuple[torch.Tensor, ...] = ()

    def __call__(self, layer: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
        if self._of is None or self._of[0] is not rows or self._of[1] != rows._version:
            flat = rows.reshape(-1, rows.shape[-1])
            product = flat @ self._weight if self._bias is None else torch.addmm(self._bias, flat, self._weight)
            self._parts = product.view(*rows.shape[:-1], -1).split(self._sizes, -1)
            self._of = rows, rows._version
        part = self._parts[self._place[layer]]
        if self._place[layer] == len(self._sizes) - 1:
            self._of, self._parts = None, ()  # nothing is held longer than it is wanted
        return part
