"""What a forward pass over a micro-batch keeps for its backward pass, and what the output head works on: formulas."""

from __future__ import annotations

from typing import TYPE_CHECKING

from posttrain.logprobs import KEPT_ELEMENTS, targets_at_once
from posttrain.planning.batches import Load
from posttrain.planning.shape import ModelShape

if TYPE_CHECKING:
    from posttrain.planning.memory import Setting

# Blocks on their way from or to the CPU's memory, of a layer each (offloading.py).
_UNDER_WAY = 3
# What --recompute keeps beside the inputs of layers, in words.
KEPT_BESIDE = {"layers": "", "all_but_attention": ", attention's outputs", "elementwise": ", outputs of products"}


def activation_bytes(shape: ModelShape, setting: Setting, load: Load) -> float:
    """What a forward pass over a micro-batch keeps for its backward pass, without the head."""
    saved, tokens = shape.saved, computed_tokens(shape, load)
    half = 2 if setting.half else shape.number
    number = half if setting.on_gpu else max(4, shape.number)  # a CPU attends in float32 at least
    copied = 2 * shape.key * number * load.keys if shape.by_segments else 0.0
    in_layer = saved.of_token_in_layer * tokens + copied
    # FSDP and DeepSpeed have weights in half precision themselves, and not beside others.
    casts = 0.0 if setting.sharder else saved.of_layer * shape.layers + saved.outside
    outside = saved.of_token_outside * tokens
    if not setting.recomputed:
        return max(0.0, in_layer * shape.layers + outside + casts)
    # Autocast keeps the casts of trained weights until the forward pass ends, and one layer's while it is recomputed.
    is_cached = shape.num_trained >= shape.num_parameters
    checkpointed = -(-shape.layers // setting.every)
    whole = in_layer * (shape.layers - checkpointed)
    kept = (_input_bytes(shape) + _kept_beside(shape, setting)) * tokens * checkpointed
    return max(
        0.0,
        kept
        + whole
        + outside
        + max(casts if is_cached else 0.0, in_layer + (0.0 if setting.sharder else saved.of_layer)),
    )


def leaving_bytes(shape: ModelShape, setting: Setting, load: Load) -> float:
    """What of the activations waits in the CPU's memory: all but what is under way, and of layers that are computed
    again their inputs alone."""
    stays = min(1.0, _UNDER_WAY / max(1, shape.layers))
    whole = activation_bytes(shape, setting, load)
    if setting.recomputed:
        whole = _input_bytes(shape) * computed_tokens(shape, load) * -(-shape.layers // setting.every)
    return (1 - stays) * whole


def _input_bytes(shape: ModelShape) -> float:
    """Of a layer's input, a token."""
    return float(shape.number * shape.hidden)


def _kept_beside(shape: ModelShape, setting: Setting) -> float:
    """Bytes a token and layer that are kept beside the inputs of layers, and not computed again (recompute.py)."""
    number = 2 if setting.half else shape.number
    attention = number * shape.query
    products = number * (shape.query + 2 * shape.key + 2 * shape.hidden + 2 * shape.inner)
    return float({"layers": 0, "all_but_attention": attention, "elementwise": attention + products}[setting.recompute])


def head_bytes(shape: ModelShape, targets: float, setting: Setting, training: bool) -> tuple[float, float]:
    """What the output head keeps, and what it works on at a time (logprobs.py, compiled_head.py)."""
    if not shape.head:
        return 0.0, 0.0
    whole = targets * shape.vocabulary
    forward, backward = targets_at_once("cuda" if setting.on_gpu else "cpu", shape.vocabulary)
    at_once = max(forward, backward) if setting.compiled else backward if training else forward
    chunk = shape.vocabulary * min(targets, at_once)
    number = 2 if setting.half else shape.number
    cast = 2 * shape.head if setting.half and shape.number > 2 else 0  # of the head's weights, for the time of a pass
    if not training:
        return targets * shape.hidden * shape.number, (number if setting.compiled else 3 * 4) * chunk + cast
    kept = 4 * whole if whole <= KEPT_ELEMENTS and not setting.compiled else 0.0
    transient = (2 * number if setting.compiled else (2 if kept else 3) * 4) * chunk
    if shape.num_trained >= shape.num_parameters:
        # Gradients of chunks are summed in float32. In half precision, what one adds is there beside its own gradient,
        # and a CPU adds it from a copy in float32.
        added = number * (chunk + shape.head) + (0 if setting.on_gpu else 4 * shape.head) if number < 4 else 0
        transient = 4 * shape.head + max(transient, added)
    return kept + cast + 2 * targets * shape.hidden * shape.number, transient


def computed_tokens(shape: ModelShape, load: Load) -> float:
    """Of a micro-batch, those of padding where the model wants rows."""
    return load.tokens if shape.by_segments else load.padded
