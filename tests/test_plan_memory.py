"""What a plan counts beside activations: the output head, gaps of the allocator, compiled products, a captured step."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from planned_models import QWEN2_05B, write_config
from test_scaling import SETTING, SHAPE

from benchmarks.long_sequences import MIB, peak_and_held
from posttrain.config import parse_command_line
from posttrain.logprobs import head_statistics
from posttrain.planning.batches import Load
from posttrain.planning.kept import head_bytes
from posttrain.planning.memory import CPU_GAPS, CPU_GAPS_RECOMPUTED, Sampling, Setting, memory_of
from posttrain.planning.shape import shape_of

HEAD = dataclasses.replace(SHAPE, vocabulary=1000, hidden=10, head=10_000, num_parameters=20_000, num_trained=20_000)


def test_the_head_by_hand() -> None:
    # 100 targets × 1,000 tokens: all probabilities are kept, 4 bytes each; a chunk holds them all, and their gradient.
    states = 2 * 100 * 10 * 4
    assert head_bytes(HEAD, 100, SETTING, True) == (400_000 + states, 2 * 400_000 + 40_000)
    # Of 152k tokens 32 at a time, in three tensors; nothing of them is kept.
    large = dataclasses.replace(HEAD, vocabulary=152_000, head=1_520_000)
    assert head_bytes(large, 200, SETTING, True) == (2 * states, 3 * 4 * 32 * 152_000 + 4 * 1_520_000)
    # In half precision the head is cast.
    half = dataclasses.replace(SETTING, half=True)
    more = 2 * 1_520_000
    assert head_bytes(large, 200, half, True) == (2 * states + more, 3 * 4 * 32 * 152_000 + 4 * 1_520_000)
    frozen = dataclasses.replace(large, num_trained=1)
    assert head_bytes(frozen, 200, half, True) == (2 * states + more, 3 * 4 * 32 * 152_000)
    assert head_bytes(large, 200, half, False) == (states, 3 * 4 * 32 * 152_000 + more)
    # Compiled, a chunk is its logits and their gradient, in the type of the product.
    compiled = dataclasses.replace(half, compiled=True)
    assert head_bytes(large, 200, compiled, True) == (2 * states + more, 2 * 2 * 32 * 152_000 + 4 * 1_520_000)
    assert head_bytes(HEAD, 100, dataclasses.replace(SETTING, compiled=True), True) == (states, 800_000 + 40_000)
    # A head much larger than a chunk: what the chunk adds to the gradient, in half and in float32, beside its own.
    wide = dataclasses.replace(large, hidden=1000, head=152_000_000)
    added = 2 * (32 * 152_000 + 152_000_000)
    assert head_bytes(wide, 200, half, True)[1] == 4 * 152_000_000 + added + 4 * 152_000_000
    on_gpu = dataclasses.replace(half, on_gpu=True)
    assert head_bytes(wide, 20, on_gpu, True)[1] == 4 * 152_000_000 + 2 * (20 * 152_000 + 152_000_000)


@pytest.mark.parametrize("half", [False, True])
def test_the_head_takes_what_is_said(half: bool) -> None:
    """Tensors that are there at once, as torch counts them, of 2,048 targets and 20,000 tokens."""
    vocabulary, hidden, targets = 20_000, 256, 2048
    shape = dataclasses.replace(HEAD, vocabulary=vocabulary, hidden=hidden, head=vocabulary * hidden)
    states = torch.randn(targets, hidden, requires_grad=True)
    weight = torch.randn(vocabulary, hidden).mul_(0.02).requires_grad_()
    weight.grad = torch.zeros_like(weight)  # which is counted by itself
    wanted = torch.randint(0, vocabulary, (targets,))

    def step() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return -head_statistics(states, weight, None, wanted)[:, 0].sum()

    setting = dataclasses.replace(SETTING, half=half)
    most, _ = peak_and_held(step)
    assert most * MIB == pytest.approx(sum(head_bytes(shape, targets, setting, training=True)), rel=0.15)


LOAD = Load(rows=1, tokens=100, targets=0, sequences=1, unshared=100, padded=100, keys=0, pairs=5050)


def test_gaps_are_larger_where_activations_are_recomputed() -> None:
    shares = []
    for recomputed in (False, True):
        setting = dataclasses.replace(SETTING, recomputed=recomputed)
        parts = memory_of(dataclasses.replace(SHAPE, head=0), setting, LOAD).phases["training step"]
        shares.append(parts[-1].bytes / sum(part.bytes for part in parts[:-1]))
        assert parts[-1].name == "gaps of the allocator"
    assert shares == pytest.approx([CPU_GAPS, CPU_GAPS_RECOMPUTED])


def test_the_graph_of_a_captured_step_has_memory_of_its_own() -> None:
    # 8 completions of 5 logits in three copies of 4 bytes; a layer's 6 + 3 numbers of 4 bytes.
    sampling = Sampling(completions=8, prompts=1, prompt=10, longest=20, expected=20)

    def captured(by_segments: bool, on_gpu: bool) -> list[float]:
        shape = dataclasses.replace(SHAPE, by_segments=by_segments)
        setting = dataclasses.replace(SETTING, on_gpu=on_gpu)
        parts = memory_of(shape, setting, LOAD, sampling=sampling).phases["sampling"]
        return [part.bytes for part in parts if part.name == "a captured step"]

    assert captured(True, on_gpu=True) == [3 * 4 * 8 * 5 + 8 * 9 * 4]
    assert captured(False, on_gpu=True) == captured(True, on_gpu=False) == []


def test_weights_are_cast_once_to_sample_with_on_a_gpu() -> None:
    sampling = Sampling(completions=8, prompts=1, prompt=10, longest=20, expected=20)

    def cast(number: int, **changes: Any) -> list[float]:
        shape = dataclasses.replace(SHAPE, number=number, weight_bytes=1000)
        setting = dataclasses.replace(SETTING, **changes)
        parts = memory_of(shape, setting, LOAD, sampling=sampling).phases["sampling"]
        return [part.bytes for part in parts if part.name == "weights in half precision"]

    assert cast(4, on_gpu=True, half=True) == [500]
    assert cast(2, on_gpu=True, half=True) == cast(4, on_gpu=True, half=False) == cast(4, on_gpu=False, half=True) == []


@pytest.mark.parametrize(
    ("sharder", "sharded", "held"),
    [
        # A model of 1000 parameters in bfloat16, over 2 processes. FSDP: weights and Adam's two numbers in float32.
        ("fsdp", {"weights", "gradients", "optimizer"}, {"weights": 2000, "optimizer": 4000}),
        # DeepSpeed: weights in half precision; those in float32 and Adam's two numbers.
        ("zero", {"optimizer"}, {"weights": 2000, "optimizer": 6000}),
        ("zero", {"weights", "gradients", "optimizer"}, {"weights": 1000, "optimizer": 6000}),
    ],
)
def test_in_half_precision_weights_in_shards_are_trained_in_float32(
    sharder: str, sharded: set[str], held: dict[str, int]
) -> None:
    shape = dataclasses.replace(
        SHAPE, number=2, num_parameters=1000, num_trained=1000, weight_bytes=2000, trained_bytes=2000
    )
    setting = dataclasses.replace(
        SETTING, on_gpu=True, half=True, processes=2, micro_batches=2, sharder=sharder, sharded=frozenset(sharded)
    )
    found = memory_of(shape, setting, LOAD)
    assert {part.name: part.bytes for part in found.always if part.name in held} == held
    (gradients,) = (part.bytes for part in found.phases["training step"] if part.name == "gradients")
    whole = 4000 if sharder == "fsdp" else 2000
    assert gradients == (whole / 2 if "gradients" in sharded else whole)


def test_products_that_a_cpu_compiles_are_kept_up_to_a_number() -> None:
    half = dataclasses.replace(SETTING, half=True)

    def compiled(setting: Setting, number: int) -> float:
        parts = memory_of(SHAPE, setting, LOAD, num_compiled=number).always
        return sum(part.bytes for part in parts if part.name == "compiled products")

    assert compiled(half, 100) == 100 * 565 * 1024 * (1 + CPU_GAPS)
    assert compiled(half, 5000) == compiled(half, 1024) > 0
    assert compiled(SETTING, 100) == compiled(dataclasses.replace(half, on_gpu=True), 100) == 0
    assert compiled(half, 0) == 0


def test_products_of_a_model_are_those_of_its_different_layers(tmp_path: Path) -> None:
    small = QWEN2_05B | {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "vocab_size": 300}
    small |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    words = ["--model_name_or_path", str(write_config(tmp_path / "small", small)), "--dataset_name", "x"]

    def products(more: str) -> tuple[int, int]:
        shape = shape_of(parse_command_line("sft", [*words, *more.split()])[0], torch.bfloat16, on_gpu=False)
        return shape.forward_products, shape.backward_products

    # Queries 64 → 64 with bias, keys and values 64 → 32, the output 64 → 64 without, gate and up 64 → 160, down.
    assert products("") == (5, 2 * 4)
    # Frozen, one each backward; and the adapters of queries and values: 64 → 8, 8 → 64, 8 → 32, two each.
    assert products("--use_peft --lora_r 8 --lora_target_modules q_proj v_proj") == (5 + 3, 4 + 2 * 3)
