"""How much there is to compute, and how long that takes at a speed that is assumed, or that a probe has measured.

A product of a token with a matrix of P numbers is 2 P operations, its backward pass twice that (Kaplan et al., arXiv
2001.08361, section 2.1); attention adds 4 operations a pair of query and key and number of a head, and two and a half
times that backward (FlashAttention-2, arXiv 2307.08691, section 4.1).
"""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.planning.batches import Load
from posttrain.planning.devices import Device
from posttrain.planning.memory import Sampling, Setting
from posttrain.planning.shape import ModelShape

_ATTENTION_BACKWARD = 2.5  # times its forward pass: FlashAttention computes the scores once more
# Seconds that a layer costs beside its products, once a pass, and once more a segment where attention is computed
# segment by segment (on CPUs); and a step, for optimizer, clipping and bookkeeping. Measured on small models on a CPU.
_OF_LAYER = {"cpu": 1.0e-3, "cuda": 0.15e-3}
_OF_SEGMENT_IN_LAYER = {"cpu": 6e-5, "cuda": 0.0}
_OF_STEP = {"cpu": 8e-3, "cuda": 10e-3}
_OF_TOKEN_DRAWN = {"cpu": 1.2e-3, "cuda": 1.0e-3}  # a step of sampling, beside its products
_OPTIMIZER_BYTES = 28  # read and written a trained parameter: weight, gradient and two states
_CPU_MEMORY = 8e9  # bytes a second of a core


@dataclass(frozen=True)
class Work:
    """Operations of one optimizer step of a process.

    Args:
        training: forward and backward passes of the policy.
        scoring: forward passes beside them, of a reference or a reward model, or of the policy as it was.
        sampling: of completions.
        segments: that attention goes through, all micro-batches together.
        passes: over the model's layers.
        drawn: tokens that are drawn one after the other.
    """

    training: float
    scoring: float
    sampling: float
    segments: float
    passes: float
    drawn: float

    @property
    def operations(self) -> float:
        return self.training + self.scoring + self.sampling


def forward_operations(shape: ModelShape, load: Load) -> float:
    """Of a forward pass over a micro-batch, the head at the targets only."""
    return sum(_forward(shape, load))


def training_operations(shape: ModelShape, load: Load) -> float:
    """Of a forward and a backward pass over a micro-batch, activations kept."""
    products, attention = _forward(shape, load)
    # A product's backward pass is one for its inputs and one for its weights, where those are trained.
    is_whole = shape.num_trained >= shape.num_parameters
    backward = products * (2 if is_whole else 1 + shape.trained_share) + _ATTENTION_BACKWARD * attention
    return products + attention + backward


def recomputed_operations(shape: ModelShape, setting: Setting, load: Load) -> float:
    """Of what gradient checkpointing computes again of a forward pass over a micro-batch."""
    products, attention = _forward(shape, load)
    again = {"layers": products + attention, "all_but_attention": products, "elementwise": 0.0}[setting.recompute]
    return again / setting.every if setting.recomputed else 0.0


def _forward(shape: ModelShape, load: Load) -> tuple[float, float]:
    """Operations of products with weights, and of attention."""
    share = 1.0 if shape.by_segments else load.padded / max(1.0, load.tokens)
    products = 2 * shape.per_token * load.tokens * share + 2 * shape.head * load.targets
    return products, 4 * shape.query * load.pairs * shape.layers * share


def work_of(
    shape: ModelShape,
    setting: Setting,
    load: Load,
    extra_passes: float = 0.0,
    reward_operations: float = 0.0,
    sampling: Sampling | None = None,
    generations: float = 0.0,
) -> Work:
    """Of one optimizer step.

    Args:
        shape: of the policy.
        setting: of the run.
        load: the mean micro-batch.
        extra_passes: forward passes of models of the policy's size, a micro-batch.
        reward_operations: of reward models, a micro-batch.
        sampling: completions of a generation.
        generations: a step.
    """
    forward = forward_operations(shape, load)
    training = training_operations(shape, load) + recomputed_operations(shape, setting, load)
    number = setting.micro_batches
    sampled = drawn = 0.0
    if sampling is not None:
        tokens = sampling.completions * sampling.expected + sampling.prompts * sampling.prompt
        seen = sampling.completions * sampling.expected * (sampling.prompt + sampling.expected / 2)
        sampled = 2 * (shape.per_token + shape.head) * tokens + 4 * shape.query * seen * shape.layers
        drawn = min(sampling.longest, 2 * sampling.expected)  # until the longest of them has ended
    passes = number * (2 + bool(setting.recomputed) + extra_passes)
    segments = number * (load.sequences + load.rows * (load.keys > 0)) * (2 + extra_passes)
    return Work(
        training=training * number,
        scoring=(forward * extra_passes + reward_operations) * number,
        sampling=sampled * generations,
        segments=segments,
        passes=passes,
        drawn=drawn * generations,
    )


def seconds_of(work: Work, shape: ModelShape, setting: Setting, device: Device) -> float:
    """Of one optimizer step, at the speed that is assumed of the device."""
    kind = device.kind
    products = (work.training + work.scoring) / device.flops
    fixed = shape.layers * (_OF_LAYER[kind] * work.passes + _OF_SEGMENT_IN_LAYER[kind] * work.segments)
    memory_speed = device.bandwidth if kind == "cuda" else _CPU_MEMORY
    optimizer = _OPTIMIZER_BYTES * shape.num_trained / memory_speed + _OF_STEP[kind]
    weights = (
        shape.weight_bytes if kind == "cuda" else 0
    )  # read once a token drawn; those of small models stay in caches
    drawing = work.drawn * (_OF_TOKEN_DRAWN[kind] * max(1, shape.layers / 4) + weights / device.bandwidth)
    sampling = work.sampling / (device.flops * (1.0 if kind == "cuda" else 0.7)) + drawing
    return products + fixed + optimizer + sampling
