"""The arithmetic of plans, by hand: parameters, rows, steps, memory, what is spread over processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from planned_models import QWEN2_05B, activations_counted_once, planned, write_config, write_known
from tiny import write_rows

from posttrain.config import parse_command_line
from posttrain.planning.batches import Load, steps_of_rows
from posttrain.planning.devices import device_of
from posttrain.planning.generations import steps_of_prompts
from posttrain.planning.lengths import RowLengths, rows_of
from posttrain.planning.memory import Setting, memory_of, optimizer_numbers
from posttrain.planning.shape import shape_of
from posttrain.planning.work import forward_operations, work_of
from posttrain.training import training_arguments

MIB, GIB = 2**20, 2**30


@pytest.fixture(scope="module", autouse=True)
def counted_once() -> Iterator[None]:
    """Activations of a model are counted once: most of the time that a plan takes goes there."""
    with activations_counted_once():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models without weights, and rows of every kind."""
    return write_known(tmp_path_factory.mktemp("plans"))


# -- the model


def test_parameters_of_known_models_from_their_configs(folder: Path) -> None:
    assert planned(folder, "sft", "qwen2-0.5b").num_parameters == 494_032_768
    assert planned(folder, "sft", "llama-8b").num_parameters == 8_030_261_248
    # A score of each hidden width in place of the output head, which is tied in the one and not in the other.
    assert planned(folder, "reward", "qwen2-0.5b").num_parameters == 494_032_768 + 896
    assert planned(folder, "reward", "llama-8b").num_parameters == 8_030_261_248 - 128256 * 4096 + 4096


def test_parameters_of_adapters(folder: Path) -> None:
    found = planned(folder, "sft", "llama-8b", "--use_peft --lora_r 16 --lora_target_modules q_proj v_proj")
    # q: 4096 → 4096, v: 4096 → 1024, rank 16, in 32 layers
    assert found.num_trained == 32 * 16 * ((4096 + 4096) + (4096 + 1024)) == 6_815_744
    optimizer = next(part for part in found.memory.always if part.name == "optimizer")
    assert optimizer.bytes == 2 * 4 * found.num_trained


def test_bytes_of_weights_and_adam(folder: Path) -> None:
    always = {part.name: part.bytes for part in planned(folder, "sft", "qwen2-0.5b").memory.always}
    assert always["weights"] == 4 * 494_032_768
    assert always["optimizer"] == 2 * 4 * 494_032_768  # Adam's two numbers in float32
    halves = planned(folder, "sft", "qwen2-0.5b", "--dtype bfloat16 --optim adafactor")
    halved = {part.name: part.bytes for part in halves.memory.always}
    assert halved["weights"] == 2 * 494_032_768
    assert halved["optimizer"] < 0.05 * halved["weights"]
    assert optimizer_numbers("adamw_bnb_8bit") * 4 == pytest.approx(2, rel=0.05)  # two bytes a float32 parameter


def test_a_quantised_base_takes_half_a_byte_a_linear_weight(folder: Path) -> None:
    found = planned(folder, "sft", "llama-8b", "--use_peft --load_in_4bit --lora_target_modules q_proj", gpu="rtx4090")
    weights = next(part.bytes for part in found.memory.always if part.name == "weights")
    linear, other = 6_979_321_856, 2 * 128256 * 4096 + 65 * 4096
    assert weights == pytest.approx(linear * (0.5 + 4 / 64) + other * 2 + found.num_trained * 4, rel=1e-6)
    assert found.fits
    assert not planned(folder, "sft", "llama-8b", gpu="rtx4090").fits


def test_a_frozen_reference_is_counted_once(folder: Path) -> None:
    def reference(words: str) -> float:
        found = planned(folder, "dpo", "qwen2-0.5b", words)
        return sum(part.bytes for part in found.memory.always if part.name == "reference")

    assert reference("") == 4 * 494_032_768
    assert reference("--use_peft") == reference("--precompute_ref_log_probs") == 0


@pytest.mark.parametrize("half", [False, True])
def test_activations_are_those_that_autograd_keeps(half: bool, folder: Path) -> None:
    """The count without numbers, against a forward pass with numbers, of a small model of the same kind; in autocast,
    too, where a CPU attends in float32."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from posttrain.batch import NO_PARENT, pack
    from posttrain.scoring import Scorer

    small = QWEN2_05B | {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "vocab_size": 300}
    small |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    model_folder = write_config(folder / "small", small)
    words = ["--model_name_or_path", str(model_folder), "--dataset_name", "x"]
    shape = shape_of(parse_command_line("sft", words)[0], torch.bfloat16 if half else None, on_gpu=False)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_folder))
    scorer = Scorer(model)
    model.train()
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, Any] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    mask = np.ones(192, dtype=np.int8)
    mask[0] = 0
    batch = pack([np.arange(192)], [mask], [NO_PARENT], num_groups=1)
    context = torch.autocast("cpu", torch.bfloat16, enabled=half)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), context:
        scorer(model, batch)
    actual = sum(storage.nbytes() for storage in kept.values())
    head = (192 * 64 + 300 * 64) * 2 + 192 * 300 * 4 if half else 191 * (300 + 64) * 4
    predicted = 192 * (3 * shape.saved.of_token_in_layer + shape.saved.of_token_outside)
    predicted += 3 * shape.saved.of_layer + shape.saved.outside
    assert actual - head == pytest.approx(predicted, rel=0.01)


# -- rows and steps


def lengths(tokens: list[int]) -> RowLengths:
    """Documents of so many tokens, all but the first a target."""
    some = np.array(tokens, dtype=np.int64)
    ones = np.ones_like(some)
    return RowLengths(some, some - 1, some, some, ones, 0 * some, some * (some + 1) // 2)


def arguments_of(words: str, method: str = "sft") -> Any:
    more = ["--reward_funcs", "accuracy_reward"] if method in ("grpo", "rloo") else []
    config, _ = parse_command_line(method, ["--model_name_or_path", "m", "--dataset_name", "d", *more, *words.split()])
    return training_arguments(config), config


@pytest.mark.parametrize(
    ("words", "processes", "steps", "in_epoch", "in_last"),
    [
        ("--per_device_train_batch_size 4", 1, 18, 6, 3),  # 23 rows: 5 whole micro-batches and one of 3; 3 epochs
        ("--per_device_train_batch_size 4 --dataloader_drop_last", 1, 15, 5, 0),
        ("--per_device_train_batch_size 4 --gradient_accumulation_steps 4", 1, 6, 2, 3),
        ("--per_device_train_batch_size 4", 2, 9, 3, 3),
        ("--per_device_train_batch_size 4 --max_steps 10", 1, 10, 6, 3),
        ("--per_device_train_batch_size 4 --num_train_epochs 0.5", 1, 3, 6, 3),
    ],
)
def test_steps_of_rows(words: str, processes: int, steps: int, in_epoch: int, in_last: int) -> None:
    arguments, _ = arguments_of(words)
    found = steps_of_rows(arguments, lengths([10] * 23), 23, False, processes, False)
    assert (found.number, found.in_epoch, found.rows_in_last) == (steps, in_epoch, in_last)
    assert found.epochs == steps / in_epoch


def test_micro_batches_are_those_that_the_run_takes(folder: Path, tmp_path: Path) -> None:
    """In the order of the sampler: a probe of the trainer's own batches sees the same tokens."""
    arguments, _ = arguments_of("--per_device_train_batch_size 4 --train_sampling_strategy sequential --max_steps 3")
    found = steps_of_rows(arguments, lengths([1, 2, 3, 4, 50, 6, 7, 8, 9]), 9, False, 1, False)
    assert found.mean.tokens == pytest.approx((10 + 71 + 9) / 3)
    assert (found.largest.tokens, found.largest.padded) == (71, 200)
    assert found.sizes == 2  # of 64 tokens, which 10 and 9 are filled up to, and of 128
    padded = steps_of_rows(arguments, lengths([1, 2, 3, 4, 50, 6, 7, 8, 9]), 9, False, 1, True)
    assert padded.sizes == 3  # rectangles are as they are: 16, 200, 9


def test_warm_up_below_one_is_a_share() -> None:
    for given, wanted in (("0.25", 5), ("7", 7), ("0.01", 1)):
        arguments, _ = arguments_of(f"--per_device_train_batch_size 1 --max_steps 20 --warmup_steps {given}")
        assert steps_of_rows(arguments, lengths([5] * 20), 20, False, 1, False).warmup == wanted


def test_steps_and_tokens_of_completions() -> None:
    words = "--per_device_train_batch_size 8 --num_generations 4 --gradient_accumulation_steps 2 --no_shuffle_dataset"
    arguments, config = arguments_of(words, "grpo")
    prompts = np.array([10, 20, 30, 40, 50, 60])
    # A generation: 8 × 2 completions of 4 prompts; one of them in an epoch of 6 prompts, which is one step; 3 epochs.
    found = steps_of_prompts(arguments, config, prompts, 6, 100.0, 1, 2)
    assert (found.in_epoch, found.number) == (1, 3)
    # Micro-batches of 2 prompts: 10 + 20, 30 + 40, 50 + 60, …
    assert found.mean.tokens == pytest.approx(2 * 35 + 8 * 100, rel=0.05)
    assert found.largest.tokens == 50 + 60 + 8 * 100
    assert found.largest.sequences == 8
    assert found.largest.keys == 8 * (55 + 100)
    assert (found.sizes, found.generations) == (3 * 2, 3)  # completions end where they like: each is of another size
    # As long as they may be, 830, 870, 910 tokens; these are filled up to 13, 14 and 15 times 64.
    config.max_completion_length = 100
    assert steps_of_prompts(arguments, config, prompts, 6, 100.0, 1, 2).sizes == 3


def test_packing_efficiency_of_hand_made_rows(folder: Path, tmp_path: Path) -> None:
    rows = [{"input_ids": list(range(5, 5 + n))} for n in (6, 4, 7, 3, 5)]
    data = write_rows(tmp_path / "ids.jsonl", rows)
    words = f"--dataset_name {data} --max_length 10 --per_device_train_batch_size 1"
    packed = planned(folder, "sft", "qwen2-0.5b", f"{words} --packing").rows
    assert packed.kept == 3  # 7 + 3, 6 + 4, 5
    assert packed.packing == pytest.approx(25 / 30)
    plain = planned(folder, "sft", "qwen2-0.5b", words).rows
    assert (plain.kept, plain.packing) == (5, None)
    assert plain.packable == pytest.approx(25 / 30)


def test_a_shared_prompt_is_computed_once(folder: Path, tmp_path: Path) -> None:
    found = planned(folder, "dpo", "qwen2-0.5b", "--per_device_train_batch_size 16")
    load = found.steps.largest
    assert load.sequences == 32
    assert load.tokens < load.unshared <= load.padded
    assert found.rows.saved == pytest.approx(1 - found.steps.mean.tokens / found.steps.mean.padded)


def test_counts_are_those_of_prepared_rows(folder: Path) -> None:
    found = planned(folder, "dpo", "qwen2-0.5b", "--max_length 60")
    config, _ = parse_command_line(
        "dpo",
        f"--model_name_or_path {folder / 'qwen2-0.5b'} --dataset_name {folder / 'pairs.jsonl'} --max_length 60 "
        f"--cache_dir {folder / 'cache'}".split(),
    )
    from posttrain.data.tokenizer import load_tokenizer

    rows = rows_of(config, load_tokenizer(config), "train", 1000)
    assert rows is not None
    assert (found.rows.kept, found.rows.truncated) == (rows.counts["rows"], rows.counts["rows_truncated"])
    assert int(rows.lengths.tokens.sum()) == rows.counts["tokens"]
    assert int(rows.lengths.targets.sum()) == rows.counts["targets"]


# -- memory


def setting(**changes: Any) -> Setting:
    values: dict[str, Any] = {
        "on_gpu": True,
        "recomputed": False,
        "micro_batches": 1,
        "processes": 1,
        "sharded": frozenset(),
        "optimizer": "adamw_torch_fused",
        "half": True,
    }
    return Setting(**values | changes)


LOAD = Load(rows=1, tokens=1000, targets=900, sequences=1, unshared=1000, padded=1000, keys=0, pairs=500_500)


@pytest.mark.parametrize(
    ("launcher", "spread"),
    [
        ("multi_gpu", set()),
        ("fsdp2", {"weights", "gradients", "optimizer"}),
        ("zero1", {"optimizer"}),
        ("zero2", {"optimizer", "gradients"}),
        ("zero3", {"weights", "gradients", "optimizer"}),
    ],
)
def test_what_is_spread_is_divided_by_the_processes(folder: Path, launcher: str, spread: set[str]) -> None:
    words = f"--accelerate_config {launcher} --num_processes 8 --gradient_accumulation_steps 2"
    found = planned(folder, "sft", "qwen2-0.5b", words, gpu="a100-80gb")
    parts = {part.name: part.bytes for part in (*found.memory.always, *found.memory.phases["training step"])}
    # In half precision DeepSpeed has weights and gradients in it, and the weights in float32 with the optimizer's.
    numbers = (2, 2, 12) if launcher.startswith("zero") else (4, 4, 8)
    whole = {name: n * 494_032_768 for name, n in zip(("weights", "gradients", "optimizer"), numbers, strict=True)}
    if launcher == "multi_gpu":  # gradients are those that it sends
        assert "gradients" not in parts and parts["buckets of gradients"] == whole.pop("gradients")
    for name, size in whole.items():
        assert parts[name] == size / (8 if name in spread else 1)
    assert ("buckets of gradients" in parts) == (launcher != "fsdp2")
    assert found.steps.rows_in_step == 8 * 2 * 8


def test_memory_grows_with_tokens_and_recomputing_saves_it(folder: Path) -> None:
    config, _ = parse_command_line("sft", ["--model_name_or_path", str(folder / "llama-8b"), "--dataset_name", "x"])
    import torch

    shape = shape_of(config, torch.bfloat16, on_gpu=True)
    twice = Load(**{name: 2 * value for name, value in vars(LOAD).items()})

    def activations(load: Load, recomputed: bool) -> float:
        parts = memory_of(shape, setting(recomputed=recomputed, micro_batches=2), load).phases["training step"]
        return next(part.bytes for part in parts if part.name == "activations")

    casts = 32 * shape.saved.of_layer  # weights in bfloat16, whatever the tokens
    per_token = 32 * shape.saved.of_token_in_layer + shape.saved.of_token_outside
    assert activations(LOAD, False) == pytest.approx(1000 * per_token + casts)
    assert activations(twice, False) - activations(LOAD, False) == pytest.approx(1000 * per_token)
    # The inputs of 32 layers of 4,096 numbers in float32, and the larger of: all weights cast, one layer in full.
    kept = 1000 * (32 * 4096 * 4 + shape.saved.of_token_outside)
    assert activations(LOAD, True) == pytest.approx(kept + casts)
    many = Load(**{name: 100 * value for name, value in vars(LOAD).items()})
    layer = 100_000 * shape.saved.of_token_in_layer + shape.saved.of_layer
    assert activations(many, True) == pytest.approx(100 * kept + layer)


def test_operations_of_a_step(folder: Path) -> None:
    config, _ = parse_command_line("sft", ["--model_name_or_path", str(folder / "qwen2-0.5b"), "--dataset_name", "x"])
    shape = shape_of(config, None, on_gpu=True)
    products = 2 * 357_826_560 * 1000 + 2 * 151936 * 896 * 900  # the head at the targets alone
    attention = 4 * 896 * 500_500 * 24
    assert forward_operations(shape, LOAD) == products + attention
    assert work_of(shape, setting(), LOAD).training == 3 * products + 3.5 * attention
    twice = work_of(shape, setting(recomputed=True, micro_batches=2), LOAD)
    assert twice.training == 2 * (4 * products + 4.5 * attention)


@pytest.mark.parametrize(
    ("name", "speed_of"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100-PCIE-40GB", "a100-40gb"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA A10G", "a10"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA RTX A6000", "a6000"),
        ("Tesla V100-SXM2-16GB", "v100-16gb"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
    ],
)
def test_a_gpu_is_known_by_the_name_that_its_driver_gives(
    name: str, speed_of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    about = SimpleNamespace(name=name, total_memory=2**34)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: about)
    config = parse_command_line("sft", ["--model_name_or_path", "model", "--dataset_name", "rows"])[0]
    found = device_of(config)
    assert found.name == name and found.memory == 2**34
    assert found.bandwidth == device_of(config, speed_of).bandwidth
