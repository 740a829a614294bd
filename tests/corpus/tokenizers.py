"""Broken tokenizers in whole model folders, and odd ones that work: what they make of a text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model_folders import Case, both, edit_settings, edit_tokenizer, remove, write

JSON, SETTINGS, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
NONE = "no tokenizer can be loaded"


def edit_vocabulary(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return edit_tokenizer(lambda about: change(about["model"]["vocab"]))


def grow(count: int) -> Callable[[Path], None]:
    """A vocabulary with more words than the model has embeddings."""
    return edit_vocabulary(lambda vocabulary: vocabulary.update({f"word{i}": 300 + i for i in range(count)}))


def added(content: str, number: int) -> Callable[[Path], None]:
    """One more added token."""
    about = {"id": number, "content": content, "special": True, "normalized": False}
    about |= {"lstrip": False, "rstrip": False, "single_word": False}
    return edit_tokenizer(lambda tokenizer: tokenizer["added_tokens"].append(about))


def cut(folder: Path) -> None:
    content = (folder / JSON).read_bytes()
    (folder / JSON).write_bytes(content[: len(content) // 2])


def slow(name: str, settings: dict[str, Any]) -> Callable[[Path], None]:
    """No tokenizer.json, but a file of an older kind that holds nothing of use."""
    return both(remove(JSON), write(name, b"\x00\x01not a model"), write(SETTINGS, json.dumps(settings)))


CASES: dict[str, Case] = {
    "no file": Case(remove(JSON, SETTINGS, TEMPLATE), ["has no tokenizer files"]),
    "no vocabulary": Case(remove(JSON), ["model_name_or_path"]),
    "an empty file": Case(write(JSON, b""), [NONE]),
    "not JSON": Case(write(JSON, "{"), [NONE]),
    "not UTF-8": Case(write(JSON, b"\xff\xfe{}"), [NONE]),
    "a list": Case(write(JSON, "[]"), [NONE]),
    "an empty mapping": Case(write(JSON, "{}"), [NONE]),
    "null": Case(write(JSON, "null"), [NONE]),
    "cut off": Case(cut, [NONE]),
    "a folder": Case(both(remove(JSON), lambda folder: (folder / JSON).mkdir()), ["model_name_or_path"]),
    "nested deep": Case(write(JSON, '{"a":' * 100_000), [NONE]),
    "no model": Case(edit_tokenizer(lambda about: about.pop("model")), [NONE]),
    "an unknown kind": Case(edit_tokenizer(lambda about: about["model"].update(type="BPX")), [NONE]),
    "an unknown splitter": Case(edit_tokenizer(lambda about: about.update(pre_tokenizer={"type": "X"})), [NONE]),
    "an unknown decoder": Case(edit_tokenizer(lambda about: about.update(decoder={"type": "X"})), [NONE]),
    "an unknown version": Case(edit_tokenizer(lambda about: about.update(version="99.0")), [NONE]),
    "a vocabulary in a list": Case(edit_tokenizer(lambda about: about["model"].update(vocab=["a"])), [NONE]),
    "a negative number": Case(edit_vocabulary(lambda vocabulary: vocabulary.update(a=-1)), [NONE]),
    "a number in words": Case(edit_vocabulary(lambda vocabulary: vocabulary.update(a="one")), [NONE]),
    "a merge of unknown tokens": Case(
        edit_tokenizer(lambda about: about["model"]["merges"].append(["xyz", "zyx"])), [NONE]
    ),
    "an expression that is none": Case(
        edit_tokenizer(
            lambda about: about.update(
                pre_tokenizer={"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False}
            )
        ),
        [NONE],
    ),
    "settings that are not JSON": Case(write(SETTINGS, "{"), [NONE]),
    "settings in a list": Case(write(SETTINGS, "[]"), [NONE]),
    "settings that are not UTF-8": Case(write(SETTINGS, b"\xff{}"), [NONE]),
    "no EOS": Case(edit_settings(eos_token=None), ["--eos_token"]),
    "an EOS that is no token": Case(edit_settings(eos_token="<|nothing|>"), ["eos_token", "<|nothing|>"]),
    "a PAD that is no token": Case(edit_settings(pad_token="<|nothing|>"), ["pad_token", "<|nothing|>"]),
    "a PAD with a number that it does not get": Case(
        both(edit_settings(pad_token="<|pad|>"), write("added_tokens.json", '{"<|pad|>": 320}')),
        ["pad_token", "<|pad|>"],
    ),
    "an EOS that is a number": Case(edit_settings(eos_token=2), ["model_name_or_path"]),
    "an EOS in a list": Case(edit_settings(eos_token=["<|im_end|>"]), ["model_name_or_path"]),
    "an EOS that is empty": Case(edit_settings(eos_token=""), ["eos_token"]),
    "a PAD that is the EOS": Case(edit_settings(pad_token="<|im_end|>"), ["eos_token and pad_token"]),
    "a PAD that is the EOS, of pairs": Case(
        edit_settings(pad_token="<|im_end|>"), ["eos_token and pad_token"], method="dpo"
    ),
    "a token too many": Case(grow(1), ["300 embeddings", "word0"]),
    "the tokenizer of another model": Case(grow(5000), ["300 embeddings"]),
    "a number far beyond": Case(edit_vocabulary(lambda vocabulary: vocabulary.update(far=10**7)), ["300 embeddings"]),
    "a special token far beyond": Case(added("<|far|>", 10**7), ["<|far|>"]),
    "a number beyond all": Case(edit_vocabulary(lambda vocabulary: vocabulary.update(far=2**40)), [NONE]),
    "special tokens in a text": Case(edit_settings(extra_special_tokens="<a>"), ["model_name_or_path"]),
    "nothing of SentencePiece": Case(slow("tokenizer.model", {"tokenizer_class": "LlamaTokenizer"}), [NONE]),
    "nothing of GPT-2's": Case(slow("vocab.json", {"tokenizer_class": "GPT2Tokenizer"}), [NONE]),
    "nothing of WordPiece": Case(slow("vocab.txt", {"tokenizer_class": "BertTokenizer"}), [NONE]),
    "nothing of Mistral's": Case(slow("tekken.json", {}), ["model_name_or_path"]),
    "no template": Case(remove(TEMPLATE), ["chat template"]),
    "a template that is not UTF-8": Case(write(TEMPLATE, b"\xff\xfe"), [NONE]),
    "a template that is none": Case(write(TEMPLATE, "{% for %}"), ["template"]),
    "an empty template": Case(write(TEMPLATE, ""), ["template"]),
    "a template that is a number": Case(both(remove(TEMPLATE), edit_settings(chat_template=5)), ["template"]),
    "a template's path without a tokenizer": Case(
        lambda folder: (folder.parent / "no").mkdir(),
        ["chat_template_path", "no tokenizer files"],
        ("--chat_template_path", "{model}/../no"),
    ),
    "a template's path to bytes": Case(
        write("t.jinja", b"\xff\xfe"),
        ["chat_template_path", "cannot be read"],
        ("--chat_template_path", "{model}/t.jinja"),
    ),
    "a template's path to nothing": Case(
        write("t.jinja", b""), ["template"], ("--chat_template_path", "{model}/t.jinja")
    ),
}

TEXT = "Ada has 12 apples"

# title → change; all of these encode TEXT as the unchanged tokenizer does.
FINE: dict[str, Callable[[Path], object]] = {
    "cutting off": edit_tokenizer(
        lambda about: about.update(
            truncation={"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
        )
    ),
    "padding": edit_tokenizer(
        lambda about: about.update(
            padding={
                "strategy": {"Fixed": 64},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "<|endoftext|>",
            }
        )
    ),
    "a longest text of one token": edit_settings(model_max_length=1),
    "a longest text without end": edit_settings(model_max_length=10**30),
    "no longest text": edit_settings(model_max_length=None),
    "cutting off on the left": edit_settings(truncation_side="left"),
    "padding on the left": edit_settings(padding_side="left"),
    "no PAD": edit_settings(pad_token=None),
    "a PAD that the settings add": edit_settings(
        pad_token="<|pad|>", added_tokens_decoder={"299": {"content": "<|pad|>"}}
    ),
    "a PAD of a file of its own": both(
        edit_settings(pad_token="<|pad|>"), write("added_tokens.json", '{"<|pad|>": 299}')
    ),
    "an EOS with its settings": edit_settings(eos_token={"content": "<|im_end|>", "__type": "AddedToken"}),
    "an unknown class": edit_settings(tokenizer_class="NobodysTokenizer"),
    "code of its own, which is not run": edit_settings(
        tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", None]}
    ),
    "no class": edit_settings(tokenizer_class=None),
    "keys that nobody knows": edit_settings(frobnicate=1),
}
