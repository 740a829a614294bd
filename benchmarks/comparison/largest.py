"""What a card of 24 GB has room for, by the formulas of `posttrain plan`: the longest row, and the largest model."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.scaling.points import letters
from posttrain.config import parse_command_line
from posttrain.planning import plan
from posttrain.planning.report import Plan

GPU = "rtx4090"  # 24 GB
# The published shapes of Qwen2.5: hidden and inner width, layers, heads, key heads, vocabulary, tied embeddings.
MODELS = {
    "0.5B": (896, 4864, 24, 14, 2, 151_936, True),
    "1.5B": (1536, 8960, 28, 12, 2, 151_936, True),
    "3B": (2048, 11_008, 36, 16, 2, 151_936, True),
    "7B": (3584, 18_944, 28, 28, 4, 152_064, False),
    "14B": (5120, 13_824, 48, 40, 8, 152_064, False),
    "32B": (5120, 27_648, 64, 40, 8, 152_064, False),
}
ROW_OF, TOKENS = "0.5B", 2048
METHODS = {"sft": "texts", "reward": "pairs", "dpo": "pairs", "grpo": "prompts", "rloo": "prompts"}
_COMPLETIONS, _COMPLETION = 8, 512
WEIGHTS = {
    "float32, products in bf16": ("--dtype", "float32", "--bf16", "true"),
    "bf16": ("--dtype", "bfloat16", "--bf16", "true"),
    "LoRA on bf16": ("--dtype", "bfloat16", "--bf16", "true", "--use_peft", "true"),
}


def on_a_card() -> dict[str, Any]:
    """Plans every method, full and LoRA.

    Returns:
        Plain data: about, in words; rows, each with method, weights, longest (tokens of a micro-batch) and largest (the
        name of a model).
    """
    with tempfile.TemporaryDirectory(prefix="posttrain-card-") as temporary:
        folder = Path(temporary)
        _write(folder)
        cases = [(method, weights) for weights in WEIGHTS for method in METHODS]
        found = [_room_for(method, weights, folder) for method, weights in tqdm(cases, unit="plan", leave=False)]
    return {
        "about": f"Planned for one of 24 GB ({GPU}) by the formulas of `posttrain plan`, with recomputed activations, "
        f"AdamW, Qwen2.5's shapes and vocabulary; nothing of it has been run. The longest row is that of a {ROW_OF} "
        "model, one document, pair or prompt with its completions a step, all tokens of the packed row counted (for "
        f"grpo and rloo, of the training step). The largest model is the largest of {', '.join(MODELS)} with rows of "
        f"{TOKENS:,} tokens: a document, a pair, or a prompt of {TOKENS // 2:,} with {_COMPLETIONS} completions of "
        f"{_COMPLETION}.",
        "rows": found,
    }


def _room_for(method: str, weights: str, folder: Path) -> dict[str, Any]:
    largest = None
    for name, found in _plans(method, weights, folder):
        if not found.fits:
            break
        largest = name
    longest = _plan(method, weights, ROW_OF, folder).longest_row
    return {"method": method, "weights": weights, "longest": longest, "largest": largest}


def _plans(method: str, weights: str, folder: Path) -> Iterator[tuple[str, Plan]]:
    for name in MODELS:
        yield name, _plan(method, weights, name, folder)


def _plan(method: str, weights: str, model: str, folder: Path) -> Plan:
    words = ["--model_name_or_path", folder / model, "--dataset_name", folder / f"{METHODS[method]}.jsonl"]
    words += ["--output_dir", folder / "out", "--cache_dir", folder / "cache", "--max_steps", "10"]
    words += ["--report_to", "none", "--gradient_checkpointing", "true", *WEIGHTS[weights]]
    if METHODS[method] == "prompts":
        words += ["--num_generations", _COMPLETIONS, "--max_completion_length", _COMPLETION]
        words += ["--per_device_train_batch_size", _COMPLETIONS]
        words += ["--reward_funcs", "get_soft_overlong_punishment"]
    else:
        words += ["--per_device_train_batch_size", 1, "--max_length", TOKENS]
    return plan(*parse_command_line(method, [str(word) for word in words]), gpu=GPU)


def _write(folder: Path) -> None:
    """Configs without weights, a tokenizer to which each letter is a token, and a few rows of each kind."""
    from transformers import Qwen2Config

    tokenizer = letters()
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    for name, (*sizes, vocabulary, is_tied) in MODELS.items():
        tokenizer.save_pretrained(folder / name)
        sizes_by_name = dict(zip(names, sizes, strict=True))
        Qwen2Config(
            vocab_size=vocabulary,
            tie_word_embeddings=is_tied,
            max_position_embeddings=2**17,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            num_labels=1,
            **sizes_by_name,
        ).save_pretrained(folder / name)
    half = TOKENS // 2
    rows = {
        "texts": {"text": "a" * (TOKENS - 1)},  # the end is added
        "pairs": {"prompt": "p" * half, "chosen": "c" * (half // 2 - 1), "rejected": "r" * (half // 2 - 1)},
        "prompts": {"prompt": "p" * half},
    }
    for name, row in rows.items():
        (folder / f"{name}.jsonl").write_text((json.dumps(row) + "\n") * 8, encoding="utf-8")
