"""What the parts train on: a random model with a tokenizer to which each letter is a token, and rows of random tokens.

Lengths of pairs are drawn from log-normal distributions, many short and a few long ones. That they are log-normal, and
how wide, is assumed; their means (180 tokens of a prompt, 305 of a completion, before they are cut) are those of
UltraFeedback by the sizes that its cards tell, at 4 bytes a token. A row of argilla/ultrafeedback-binarized-preferences
holds a prompt p and two responses r in 204,606,629 / 63,966 = 3,199 bytes, some 50 of them names and ratings; one of
HuggingFaceH4/ultrafeedback_binarized p four times and r three times in 405,688,662 / 61,135 = 6,636, some 110 of them
hashes, roles and scores. So p + 2 r = 3,150 and 4 p + 3 r = 6,530: p = 720 bytes, r = 1,210.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from .settings import Setting

SPECIAL = ["<|end|>", "<|pad|>", "<|endoftext|>"]
LETTERS = list(string.ascii_letters + string.digits)


def tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Each byte is a token; the others stand in rows of ids alone."""
    known = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    known += [f"<{index}>" for index in range(len(known), vocabulary)]
    plain = Tokenizer(models.BPE({name: index for index, name in enumerate(known)}, []))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, **dict(zip(("eos_token", "pad_token", "unk_token"), SPECIAL, strict=True))
    )


def make_model(setting: Setting, device: str, dtype: torch.dtype, seed: int = 0) -> Qwen2ForCausalLM:
    """A random Qwen2 whose embeddings are its head."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        **setting.shape, tie_word_embeddings=True, eos_token_id=0, pad_token_id=1, bos_token_id=None, num_labels=1
    )
    with torch.device(device):
        model = Qwen2ForCausalLM(config)
    return model.to(dtype)


def lengths(draw: np.random.Generator, of: tuple[float, float], count: int, longest: int) -> np.ndarray:
    """Whole log-normal numbers, at least 2.

    Args:
        draw: generator.
        of: median and shape (the deviation of the logarithm).
        count: of numbers.
        longest: where they are cut.
    """
    median, shape = of
    return np.exp(draw.normal(np.log(median), shape, count)).round().astype(np.int64).clip(2, longest)


def write(folder: Path, setting: Setting, device: str) -> dict[str, Any]:
    """Writes model, tokenizer and rows.

    Args:
        folder: made.
        setting: sizes.
        device: that the weights are drawn on.

    Returns:
        Means of what was drawn, for the table.
    """
    folder.mkdir(parents=True)
    make_model(setting, device, torch.bfloat16).save_pretrained(folder / "model")
    tokenizer(setting.vocabulary).save_pretrained(folder / "model")
    draw = np.random.default_rng(0)
    steps = setting.skip + setting.steps + 3
    documents: list[dict[str, Any]] = []
    filled = 0
    while filled < steps * setting.rows * setting.row:
        ids = draw.integers(len(SPECIAL), setting.vocabulary, lengths(draw, setting.documents, 1, setting.row)[0])
        ids[-1] = 0
        filled += len(ids)
        documents.append({"input_ids": ids.tolist()})
    _write(folder / "documents.jsonl", documents)

    def text(count: int) -> str:
        return "".join(draw.choice(LETTERS, count))

    count = steps * setting.pairs
    prompts = lengths(draw, setting.prompt, count, setting.longest)
    sides = [lengths(draw, setting.completion, count, setting.longest) for _ in range(2)]
    pairs = [
        {"prompt": text(prompt), "chosen": text(chosen - 1), "rejected": text(rejected - 1)}  # the end is added
        for prompt, chosen, rejected in zip(prompts, *sides, strict=True)
    ]
    _write(folder / "pairs.jsonl", pairs)
    asked = lengths(draw, setting.prompt, steps * setting.step_prompts, setting.longest)
    _write(folder / "prompts.jsonl", [{"prompt": text(length)} for length in asked])
    return {
        "documents": len(documents),
        "tokens of a document": round(filled / len(documents), 1),
        "tokens of a prompt": round(float(prompts.mean()), 1),
        "tokens of a completion of a pair": round(float(np.mean(sides)), 1),
    }


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
