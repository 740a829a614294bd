"""Model folders without weights, for plans: config.json of known models, and the tokenizer of the embedded task."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from tiny import SIZES, sums, write_preference, write_prompts, write_sft

from posttrain.config import parse_command_line
from posttrain.embedded.tokenizer import train_tokenizer, write_tokenizer
from posttrain.planning import plan
from posttrain.planning.report import Plan

QWEN2_05B: dict[str, Any] = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}
LLAMA31_8B: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}


def write_config(folder: Path, config: dict[str, Any]) -> Path:
    """A folder with config.json and a tokenizer, and no weights."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(train_tokenizer([text for row in sums(40) for text in row], SIZES["vocab_size"]), folder)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


ROWS = {"sft": "sft.jsonl", "dpo": "pairs.jsonl", "reward": "pairs.jsonl"} | dict.fromkeys(
    ("grpo", "rloo"), "prompts.jsonl"
)
MADE: dict[Any, Plan] = {}  # the same plan is asked for several times


def write_known(folder: Path) -> Path:
    """Fills a folder with two known models without weights, and with rows of every kind."""
    write_config(folder / "qwen2-0.5b", QWEN2_05B)
    write_config(folder / "llama-8b", LLAMA31_8B)
    write_sft(folder / "sft.jsonl", 23)
    write_preference(folder / "pairs.jsonl", 16)
    write_prompts(folder / "prompts.jsonl", 16)
    return folder


def planned(folder: Path, method: str, model: str, words: str = "", **options: Any) -> Plan:
    """A plan of rows in the folder."""
    more = " --reward_funcs accuracy_reward" if method in ("grpo", "rloo") and "reward_" not in words else ""
    named = f"--model_name_or_path {folder / model} --cache_dir {folder / 'cache'} --output_dir {folder / 'out'}"
    if "dataset_name" not in words:
        named += f" --dataset_name {folder / ROWS[method]}"
    typed = f"{named}{more} {words}"
    if (found := MADE.get((method, typed, *options.items()))) is not None:
        return found
    config, launch = parse_command_line(method, typed.split())
    found = MADE[method, typed, *options.items()] = plan(config, launch, **options)
    return found


@contextlib.contextmanager
def activations_counted_once() -> Iterator[None]:
    """Inside, plans of the same model in the same types share one count of its activations."""
    from posttrain.planning import shape

    count, found = shape.saved_for_backward, dict[Any, Any]()

    def once(config: Any, *types: Any) -> Any:
        adapter = (config.use_peft, config.lora_r, str(config.lora_target_modules))
        key = (config.model_name_or_path, config.method == "reward", adapter, *types)
        if key not in found:
            found[key] = count(config, *types)
        return found[key]

    with mock.patch.object(shape, "saved_for_backward", once):
        yield
