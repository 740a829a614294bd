"""The least that a step takes: operations and bytes, counted on the batches that were trained on, over what the machine
does of them in a second.

Operations, as planning/work.py counts them: products of each token with the weights, once forward and, where weights
are trained, twice backward; attention; the output head at targets only; a shared prompt once. A reference is one more
forward pass, and so is sampling. Bytes: weights are read forward and backward, gradients written and read for their
norm, AdamW reads four numbers a trained parameter and writes three; what the model's code keeps for the backward pass
(planning/activations.py) is written once and read once. A token that is sampled takes one reading of the weights for
all completions, and of their keys and values, those of a prompt once.

What is left out on purpose: everything computed element by element beyond what is kept, logits, copies into other types
and layouts, the start of kernels, Python.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.comparison.cells import Cell
from posttrain.planning.batches import Load
from posttrain.planning.kept import activation_bytes
from posttrain.planning.memory import Setting
from posttrain.planning.shape import ModelShape
from posttrain.planning.work import forward_operations, training_operations

_ADAMW = 7 * 4  # bytes a trained parameter: weight, gradient and two states read, all but the gradient written
_SHAPES = ((2048, 256, 768), (1024, 1024, 1024), (2048, 2048, 2048), (4096, 1024, 1024))  # of products
_COPIED = 2**26  # bytes, more than caches hold
_FIELDS = [field.name for field in dataclasses.fields(Load)]


@dataclass(frozen=True)
class Work:
    """Of a step, the mean over the steps that were measured.

    Args:
        operations: of training, a reference included.
        bytes: of training.
        sampling_operations, sampling_bytes: of completions.
    """

    operations: float
    bytes: float
    sampling_operations: float
    sampling_bytes: float

    def seconds(self, products: float, copy: float) -> dict[str, float]:
        """The floor in its parts: products and memory of training, which take turns; sampling, where the larger of the
        two counts, since its products are what reads the weights.

        Args:
            products: operations a second.
            copy: bytes a second.
        """
        sampling = max(self.sampling_operations / products, self.sampling_bytes / copy)
        return {"products": self.operations / products, "memory": self.bytes / copy, "sampling": sampling}


def work_of(cell: Cell, loads: Sequence[Mapping[str, int]], shape: ModelShape, setting: Setting) -> Work:
    """Count.

    Args:
        cell: whose steps they are.
        loads: what the micro-batches of these steps held, one a step (own_run.py).
        shape: of the model.
        setting: of the run.
    """
    each = [_work_of_step(cell, load, shape, setting) for load in loads]
    columns = zip(*map(dataclasses.astuple, each), strict=True)
    return Work(*(statistics.mean(column) for column in columns))


def _work_of_step(cell: Cell, held: Mapping[str, int], shape: ModelShape, setting: Setting) -> Work:
    load = Load(**{name: held[name] for name in _FIELDS})
    forward = forward_operations(shape, load)
    has_reference = cell.method in ("dpo", "rloo")
    operations = training_operations(shape, load) + has_reference * forward
    passes = (2 + has_reference) * shape.weight_bytes
    trained = 2 * shape.trained_bytes + _ADAMW * shape.num_trained
    kept = 2 * activation_bytes(shape, setting, load)
    sampling = sampled = 0.0
    if cell.samples:
        sampling = forward
        of_token = 2 * shape.key * shape.layers * shape.number
        seen = held["longest"] * (held["tokens"] - held["targets"]) + held["grown"]
        sampled = held["longest"] * shape.weight_bytes + of_token * seen
    return Work(operations, passes + trained + kept, sampling, sampled)


def measure_rates() -> dict[str, float]:
    """What the machine does in a second, on the threads that torch has: operations of products in either precision
    ("float32", "bf16"), bytes read and written of a copy ("copy"); the fastest of some trials, in about a second."""
    import torch

    found = {}
    for precision, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        rates = []
        for rows, inner, columns in _SHAPES:
            a, b = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
            out = torch.empty(rows, columns, dtype=dtype)
            rates.append(2 * rows * inner * columns / _fastest(functools.partial(torch.mm, a, b, out=out)))
        found[precision] = max(rates)
    source = torch.ones(_COPIED // 4)
    target = torch.empty_like(source)
    return found | {"copy": 2 * _COPIED / _fastest(functools.partial(target.copy_, source))}


def _fastest(call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(6):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])  # the first lays out memory
