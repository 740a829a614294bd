"""Tiny tokenizers and data sets for the tests of posttrain.data."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIALS = ("<pad>", "<eos>", "<bos>", "<|user|>", "<|bot|>", "<|end|>")

PLAIN_TEMPLATE = (
    "{% for m in messages %}"
    "{{ '<|user|>' if m.role == 'user' else '<|bot|>' if m.role == 'assistant' else m.role + ':' }}"
    "{{ m.content }}<|end|>{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<|bot|>{% endif %}"
)
MARKED_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|bot|>"
    "{% generation %}{{ m.content }}<|end|>{% endgeneration %}"
    "{% else %}{{ '<|user|>' if m.role == 'user' else m.role + ':' }}{{ m.content }}<|end|>{% endif %}"
    "{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|bot|>{% endif %}"
)


def make_tokenizer(
    template: str | None = PLAIN_TEMPLATE,
    merges: Sequence[tuple[str, str]] = (),
    eos: str = "<|end|>",
    adds_bos: bool = False,
    adds_eos: bool = False,
) -> PreTrainedTokenizerFast:
    """One token a character of ASCII text, but for the merges; a special token is one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIALS, *alphabet])}
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    if adds_bos or adds_eos:
        single = ["<bos>"] * adds_bos + ["$A"] + [eos] * adds_eos
        tokens = [(token, vocabulary[token]) for token in ("<bos>", eos)]
        backend.post_processor = processors.TemplateProcessing(single=" ".join(single), special_tokens=tokens)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=eos, pad_token="<pad>", bos_token="<bos>", padding_side="right"
    )
    tokenizer.chat_template = template
    return tokenizer


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    """One JSON value a line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def bot(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def shown(tokenizer: Any, ids: Sequence[int], mask: Sequence[int]) -> str:
    """Text with what is trained on in brackets: "a prompt[its completion]"."""
    pieces, inside = [], False
    for token, trained in zip(ids, mask, strict=True):
        if bool(trained) != inside:
            pieces.append("[" if trained else "]")
            inside = bool(trained)
        pieces.append(tokenizer.decode([token]))
    return "".join(pieces) + "]" * inside
