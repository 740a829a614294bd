"""What a CPU's kernels take for a size that they have not met before, and what they take from then on.

In bfloat16, oneDNN compiles code for every size of a product, and attention for every length; in float32 neither does.
What it has compiled it keeps, up to 1,024 products: the memory of that is told, too (of glibc's own count).
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention

LENGTHS = (2301, 2318, 2347)  # of packed rows
SIZES = ((256, 768), (768, 256), (256, 256))  # inner, outer: of a layer of the benchmarks' model
SEGMENTS = ((163, 163), (99, 262), (66, 229), (251, 251), (85, 336), (35, 286))  # queries, keys
HEADS, KEY_HEADS, WIDTH = 4, 2, 64


def milliseconds(run: Callable[[], object]) -> float:
    """Of one call."""
    began = time.perf_counter()
    run()
    return (time.perf_counter() - began) * 1e3


def products(dtype: torch.dtype) -> dict[str, list[list[float]]]:
    """Times of each kind of product of a linear layer, six calls for each size."""
    found: dict[str, list[list[float]]] = {"forward": [], "gradient of the input": [], "gradient of the weight": []}
    for length in LENGTHS:
        for inner, outer in SIZES:
            rows, weight = torch.randn(length, inner).to(dtype), torch.randn(outer, inner).to(dtype)
            gradient = torch.randn(length, outer).to(dtype)
            runs = (lambda: rows @ weight.T, lambda: gradient @ weight, lambda: gradient.T @ rows)  # noqa: B023
            for name, run in zip(found, runs, strict=True):
                found[name].append([milliseconds(run) for _ in range(6)])
    return found


def attention(dtype: torch.dtype) -> dict[str, list[list[float]]]:
    """Times of attention forward and backward, six passes for each segment."""
    found: dict[str, list[list[float]]] = {"attention, forward": [], "attention, backward": []}
    for queries, keys in SEGMENTS:
        q = torch.randn(1, HEADS, queries, WIDTH).to(dtype).requires_grad_()
        k, v = (torch.randn(1, KEY_HEADS, keys, WIDTH).to(dtype).requires_grad_() for _ in range(2))
        seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
        mask = torch.zeros(queries, keys, dtype=dtype).masked_fill_(~seen, -torch.inf)
        times: list[list[float]] = [[], []]
        for _ in range(6):
            began = time.perf_counter()
            output = scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
            middle = time.perf_counter()
            output.sum().backward()
            times[0].append((middle - began) * 1e3)
            times[1].append((time.perf_counter() - middle) * 1e3)
        for name, of_one in zip(found, times, strict=True):
            found[name].append(of_one)
    return found


class _Counts(ctypes.Structure):
    """glibc's mallinfo2."""

    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_size_t) for name in _names]


def kept(dtype: torch.dtype) -> float:
    """KiB that are held for a size of a product when its operands and its result are gone; of each kind of product, and
    of 16 sizes."""
    library = ctypes.CDLL(None)
    library.mallinfo2.restype = _Counts
    torch.ones(8, 8).to(dtype) @ torch.ones(8, 8).to(dtype)
    before = library.mallinfo2().uordblks
    lengths = range(1024, 2048, 64)
    for length in lengths:
        for inner, outer in SIZES:
            rows, weight = torch.ones(length, inner).to(dtype), torch.ones(outer, inner).to(dtype)
            gradient = torch.ones(length, outer).to(dtype)
            _ = rows @ weight.T, gradient @ weight, gradient.T @ rows
            del rows, weight, gradient, _
    return float(library.mallinfo2().uordblks - before) / 1024 / (len(lengths) * len(SIZES) * 3)


def main() -> None:
    """Print a table."""
    held = [kept(dtype) for dtype in (torch.float32, torch.bfloat16)]
    print(f"KiB that a size of a product leaves behind: float32 {held[0]:.0f}, bfloat16 {held[1]:.0f}\n")
    print(f"{torch.get_num_threads()} threads; milliseconds, medians over sizes\n")
    print("| | float32: first call | the least of five others | bfloat16: first call | the least of five others |")
    print("|---|---|---|---|---|")
    first, second = ([products(dtype), attention(dtype)] for dtype in (torch.float32, torch.bfloat16))
    for full, half in zip(first, second, strict=True):
        for name in full:
            sides = [(statistics.median(t[0] for t in one), statistics.median(min(t[1:]) for t in one))
                     for one in (full[name], half[name])]  # fmt: skip
            print(f"| {name} | " + " | ".join(f"{value:.2f}" for pair in sides for value in pair) + " |")


if __name__ == "__main__":
    main()
