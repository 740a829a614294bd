"""What a run holds in memory at a time: formulas, each with what it assumes.

Some of it is there from the first step to the last (weights, optimizer), some comes and goes with what is going on
(a step, sampling, an evaluation); the peak is what is always there and the largest of the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from posttrain.planning.batches import Load
from posttrain.planning.kept import KEPT_BESIDE, activation_bytes, computed_tokens, head_bytes, leaving_bytes
from posttrain.planning.shape import ModelShape

_MIB = 2**20
# Resident memory of a process that has imported what training imports and made a trainer, before weights: measured,
# see docs/plan.md. Of a GPU: the workspace of cuBLAS, which torch counts as its own.
CPU_BASE, CUDA_BASE = 500 * _MIB, 40 * _MIB
# Memory that the C library's allocator holds in gaps between tensors that come and go, as a share of those: measured.
# Where layers are computed again, their tensors come between the inputs of others, and go before them.
CPU_GAPS, CPU_GAPS_RECOMPUTED = 0.25, 1.5
# By so much of what is on top of the framework a process grows from the few steps of a probe to many: measured.
CPU_CREEP = 0.08
# Of a product that oneDNN has compiled, measured, and how many of them it keeps: its cache's capacity,
# https://uxlfoundation.github.io/oneDNN/dev_guide_primitive_cache.html
_BYTES_COMPILED, _MOST_COMPILED = 565 * 2**10, 1024
_BUCKET_OF_ZERO = 500_000_000  # gradients: reduce_bucket_size, https://www.deepspeed.ai/docs/config-json/
_COPIES_OF_LOGITS = 3  # of the next token, while it is drawn: scores, probabilities and their sums
# Numbers that an optimizer keeps for each trained one, in the type of the parameter. 8-bit ones keep bytes.
_STATES = {
    **dict.fromkeys(("sgd", "lomo", "adalomo", "adafactor", "schedule_free_sgd"), 0.02),
    **dict.fromkeys(("adagrad", "rmsprop", "rmsprop_bnb", "rmsprop_bnb_32bit", "lion_32bit", "paged_lion_32bit"), 1.0),
    **dict.fromkeys(("adamw_torch_8bit", "adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit"), 0.52),
    **dict.fromkeys(("ademamix", "paged_ademamix_32bit"), 3.0),
    **dict.fromkeys(("ademamix_8bit", "paged_ademamix_8bit"), 0.78),
    **dict.fromkeys(("lion_8bit", "paged_lion_8bit", "rmsprop_bnb_8bit"), 0.26),
    "adamw_torch_4bit": 0.27,
}


@dataclass(frozen=True)
class Part:
    """Something that takes memory.

    Args:
        name: of it.
        bytes: that it takes.
        how: it comes to be so much, in words.
    """

    name: str
    bytes: float
    how: str


@dataclass(frozen=True)
class Memory:
    """What a process (of a GPU: the tensors on it) holds.

    Args:
        always: from the first step on.
        phases: what is on top of that, by what is going on.
    """

    always: tuple[Part, ...]
    phases: dict[str, tuple[Part, ...]]

    def of_phase(self, name: str) -> float:
        """Bytes on top of what is always there."""
        return sum(part.bytes for part in self.phases[name])

    @property
    def resident(self) -> float:
        return sum(part.bytes for part in self.always)

    @property
    def fullest(self) -> str:
        """The phase that takes the most."""
        return max(self.phases, key=self.of_phase)

    @property
    def peak(self) -> float:
        return self.resident + self.of_phase(self.fullest)


@dataclass(frozen=True)
class Setting:
    """What memory depends on beside model and batches.

    Args:
        on_gpu: trained on a GPU.
        recomputed: activations are (gradient checkpointing).
        micro_batches: of a step.
        processes: that train.
        sharded: of "weights", "gradients" and "optimizer", those that are spread over the processes.
        sharder: "fsdp" or "zero", which spreads them; empty: nobody.
        optimizer: its name.
        half: products in bfloat16 or float16, weights beside them in float32.
        reference_bytes: of a frozen model beside the policy.
        reward_bytes: of reward models.
        kept_in_cpu: activations wait in the CPU's memory (--activation_offloading).
        compiled: layers and head are (--torch_compile).
        recompute: what of a layer is computed again (--recompute).
        every: one layer of so many is (every_n_layers).
        threads: of a CPU.
        notes: what was assumed of these.
    """

    on_gpu: bool
    recomputed: bool
    micro_batches: int
    processes: int
    sharded: frozenset[str]
    optimizer: str
    half: bool
    reference_bytes: float = 0.0
    reward_bytes: float = 0.0
    kept_in_cpu: bool = False
    compiled: bool = False
    recompute: str = "layers"
    every: int = 1
    sharder: str = ""
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Sampling:
    """Completions that are sampled at a time.

    Args:
        completions: of a process.
        prompts: that they continue.
        prompt: tokens of a prompt; the longest of them.
        longest: tokens that a completion may have.
        expected: that it is taken to have.
    """

    completions: float
    prompts: float
    prompt: float
    longest: float
    expected: float


def memory_of(
    shape: ModelShape,
    setting: Setting,
    training: Load,
    evaluation: Load | None = None,
    sampling: Sampling | None = None,
    eval_sampling: Sampling | None = None,
    has_reference_pass: bool = False,
    num_compiled: int = 0,
) -> Memory:
    """Add it up.

    Args:
        shape: of the policy.
        setting: of the run.
        training: the largest micro-batch.
        evaluation: the largest batch of an evaluation.
        sampling, eval_sampling: completions of a generation, in training and in evaluation.
        has_reference_pass: log-probs of a reference or reward model are computed while training.
        num_compiled: products that a CPU would compile in half precision, over the run.
    """
    phases = {"training step": tuple(_step(shape, setting, training))}
    if has_reference_pass:
        phases["reference pass"] = tuple(_forward(shape, setting, training, "of the reference"))
    if evaluation is not None:
        phases["evaluation"] = tuple(_forward(shape, setting, evaluation, "of an evaluation"))
    for name, one in (("sampling", sampling), ("sampling in evaluation", eval_sampling)):
        if one is not None:
            phases[name] = tuple(_sampling(shape, setting, one))
    if not setting.on_gpu:
        for name, parts in phases.items():
            gaps = CPU_GAPS_RECOMPUTED if setting.recomputed and name == "training step" else CPU_GAPS
            held = gaps * sum(part.bytes for part in parts)
            phases[name] = (*parts, Part("gaps of the allocator", held, f"{gaps:.0%} of what comes and goes; measured"))
    return Memory((*_always(shape, setting), *_compiled(shape, setting, num_compiled)), phases)


def optimizer_numbers(name: str) -> float:
    """Numbers that an optimizer keeps for each trained parameter: Adam's two where nothing else is known."""
    return _STATES.get(name, 2.0)


def _always(shape: ModelShape, setting: Setting) -> Iterator[Part]:
    base = CUDA_BASE if setting.on_gpu else CPU_BASE
    yield Part("framework", base, "workspace of cuBLAS" if setting.on_gpu else "Python, torch, transformers; measured")
    numbers = optimizer_numbers(setting.optimizer)
    states = f"{setting.optimizer}: {numbers:g} numbers a trained parameter"
    if _is_rounded_by_zero(setting):
        numbers, states = numbers + 1, f"{states}, and that itself in float32"
    for name, size, how in (
        ("weights", _weight_bytes(shape, setting), f"{shape.num_parameters:,} parameters"),
        ("optimizer", numbers * _trained_bytes(shape, setting), states),
    ):
        share = setting.processes if name in setting.sharded else 1
        yield Part(name, size / share, how + (f", over {share} processes" if share > 1 else ""))
    if setting.sharder == "zero":
        bucket = min(_BUCKET_OF_ZERO, shape.num_trained) * (2 if setting.half else 4)
        yield Part("buckets of gradients", bucket, "what DeepSpeed sends at a time")
    elif _holds_buckets(setting):
        yield Part("buckets of gradients", shape.trained_bytes, "which DistributedDataParallel keeps, and sends")
    if setting.reference_bytes:
        share = setting.processes if "weights" in setting.sharded else 1
        how = f"over {share} processes" if share > 1 else "whole in each process"
        yield Part("reference", setting.reference_bytes / share, f"a frozen model, {how}")
    if setting.reward_bytes:
        yield Part("reward models", setting.reward_bytes, "whole in each process")
    if "weights" in setting.sharded:
        number = 2 if setting.half else shape.number
        layer, head = shape.per_token / max(1, shape.layers), shape.vocabulary * shape.hidden
        yield Part(
            "gathered layers", number * max(2 * layer, layer + head), "two layers, or one and the head, in one piece"
        )
        if setting.sharder == "fsdp":
            sent = (number + 4) * max(layer, head) * (shape.num_trained >= shape.num_parameters)
            yield Part("gradients on their way", sent, "of the largest unit, and what FSDP adds up over processes")


def _is_rounded_by_zero(setting: Setting) -> bool:
    """DeepSpeed multiplies weights in half precision, and trains others in float32 that stand with the optimizer's."""
    return setting.sharder == "zero" and setting.half


def _holds_buckets(setting: Setting) -> bool:
    """DistributedDataParallel, whose gradients are views of what it sends."""
    return setting.processes > 1 and setting.sharder != "zero" and "gradients" not in setting.sharded


def _trained_bytes(shape: ModelShape, setting: Setting) -> int:
    """Of trained parameters, one number each: FSDP and DeepSpeed train in float32 where products are in half precision,
    whatever the type of the weights was."""
    return max(shape.trained_bytes, 4 * shape.num_trained) if setting.sharder and setting.half else shape.trained_bytes


def _weight_bytes(shape: ModelShape, setting: Setting) -> int:
    if _is_rounded_by_zero(setting):
        return min(shape.weight_bytes, _rounded_bytes(shape))
    return shape.weight_bytes + _trained_bytes(shape, setting) - shape.trained_bytes


def _rounded_bytes(shape: ModelShape) -> int:
    """Of all weights in half precision."""
    return 2 * (shape.num_parameters + (shape.num_trained < shape.num_parameters) * shape.num_trained)


def _compiled(shape: ModelShape, setting: Setting, number: int) -> Iterator[Part]:
    """Of products in half precision on a CPU, which oneDNN compiles for every size (recurring_sizes.py)."""
    if number and not setting.on_gpu and (setting.half or shape.number < 4):
        held = min(number, _MOST_COMPILED)
        how = f"{held:,} products, each compiled for its sizes; measured"
        yield Part("compiled products", held * _BYTES_COMPILED * (1 + CPU_GAPS), how)


def _step(shape: ModelShape, setting: Setting, load: Load) -> Iterator[Part]:
    saved, kept = activation_bytes(shape, setting, load), 0.0
    share = setting.processes if "gradients" in setting.sharded else 1
    trained = 2 * shape.num_trained if _is_rounded_by_zero(setting) else _trained_bytes(shape, setting)
    apart = not _holds_buckets(setting)
    gradients = Part("gradients", apart * trained / share, "a number a trained parameter")
    head, transient = head_bytes(shape, load.targets, setting, training=True)
    tied = shape.vocabulary * shape.hidden * shape.number if shape.num_trained >= shape.num_parameters else 0
    how = f"{computed_tokens(shape, load):,.0f} tokens of the largest micro-batch"
    if setting.recomputed:
        how += f", the inputs of layers{KEPT_BESIDE[setting.recompute]} and one layer in full"
        how += f"; all of {setting.every - 1} of {setting.every} layers" if setting.every > 1 else ""
    elif not shape.saved.is_counted:
        how += ", by the formula of a gated decoder"
    if setting.kept_in_cpu:
        kept = leaving_bytes(shape, setting, load)
        saved -= kept
        how += f"; {kept / _MIB:,.0f} MiB wait in the CPU's memory"
    # Gradients come as activations go: with one micro-batch a step, the larger of the two counts.
    front = saved + head + transient
    if setting.micro_batches == 1 and gradients.bytes + tied > front:
        yield gradients
        yield Part("gradient of embeddings", tied, "once more, to be added")
        return
    yield Part("activations", saved, how)
    if head:
        yield Part("output head", head, f"{load.targets:,.0f} targets × {shape.vocabulary:,} tokens, as far as kept")
    if transient:
        yield Part("chunks of logits", transient, "worked on at a time, and the head's gradient")
    if setting.micro_batches > 1 and gradients.bytes:
        yield gradients


def _forward(shape: ModelShape, setting: Setting, load: Load, whose: str) -> Iterator[Part]:
    number = 2 if setting.half else shape.number
    tokens = computed_tokens(shape, load)
    yield Part(
        "a layer at a time", number * tokens * (6 * shape.hidden + 3 * shape.inner), f"{tokens:,.0f} tokens {whose}"
    )
    kept, transient = head_bytes(shape, load.targets, setting, training=False)
    yield Part("output head", kept + transient, f"{load.targets:,.0f} targets, in chunks")


def _sampling(shape: ModelShape, setting: Setting, one: Sampling) -> Iterator[Part]:
    number = 2 if setting.half else shape.number
    of_token = 2 * shape.key * shape.layers * number
    # A CPU gives memory when it is written to, a GPU at once.
    length = one.longest if setting.on_gpu else one.expected
    held = of_token * (one.prompts * one.prompt + one.completions * length)
    yield Part("keys and values", held, f"{one.completions:,.0f} completions of {length:,.0f} tokens")
    logits = _COPIES_OF_LOGITS * 4 * one.completions * shape.vocabulary
    yield Part("logits of a token", logits, f"{one.completions:,.0f} × {shape.vocabulary:,}, {_COPIES_OF_LOGITS} times")
    tokens, of_layer = max(one.prompts * one.prompt, one.completions), number * (6 * shape.hidden + 3 * shape.inner)
    yield Part("a layer at a time", tokens * of_layer, "over the prompts")
    if setting.on_gpu and shape.by_segments:
        # The graph's memory is its own: what the step that was not captured has taken is of no use to it.
        captured = logits + one.completions * of_layer
        yield Part("a captured step", captured, "logits and a layer once more, which its graph holds")
    if "weights" in setting.sharded:
        whole = min(shape.weight_bytes, _rounded_bytes(shape)) if setting.half else shape.weight_bytes
        yield Part("the policy in one piece", whole, "to sample from, in each process, and given back")
    elif setting.on_gpu and setting.half and shape.number > 2:
        yield Part("weights in half precision", shape.weight_bytes // 2, "cast once, to sample with, and given back")
    if not setting.on_gpu and shape.laid_out:
        yield Part("weights laid out anew", shape.laid_out, "for small products")


def as_plain(memory: Memory) -> dict[str, Any]:
    """For JSON: bytes by name, and how they come about."""
    return {
        "peak": memory.peak,
        "fullest": memory.fullest,
        "always": {part.name: {"bytes": part.bytes, "how": part.how} for part in memory.always},
        "phases": {
            name: {part.name: {"bytes": part.bytes, "how": part.how} for part in parts}
            for name, parts in memory.phases.items()
        },
    }
