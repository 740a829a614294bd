"""Broken model folders: what their config says, adapters, reward models and references."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from corpus.folders import ADAPTER, EMBEDDINGS, REWARD, WHOLE, Q
from model_folders import (
    Case,
    adapter_of_adapter,
    as_adapter,
    as_classifier,
    beside,
    both,
    cut,
    cut_beside,
    edit_config,
    edit_json,
    edit_weights,
    of_shape,
    pickled_beside,
    remove,
    without,
    write,
)

REMOTE = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
LORA = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def adapter_with(**changes: object) -> Callable[[Path], None]:
    return as_adapter(lambda folder: edit_json(folder / "adapter_config.json", **changes))


def adapter_weights(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    return as_adapter(edit_weights(change, ADAPTER))


CASES: dict[str, Case] = {
    # Config
    "a config that is not JSON": Case(write("config.json", "{"), ["config.json", "not JSON"]),
    "a config that is empty": Case(write("config.json", ""), ["config.json", "not JSON"]),
    "a config that is a list": Case(write("config.json", "[]"), ["config.json", "not a mapping"]),
    "a config that is null": Case(write("config.json", "null"), ["config.json", "not a mapping"]),
    "a config that is not UTF-8": Case(write("config.json", b"\xff\xfe{}"), ["config.json"]),
    "a config nested deep": Case(write("config.json", '{"a":' * 100_000), ["config.json"]),
    "a config of nothing": Case(write("config.json", "{}"), ["names no model_type"]),
    "no kind of model": Case(edit_config(model_type=None), ["names no model_type"]),
    "an unknown kind of model": Case(edit_config(model_type="qwen99"), ["config.json", "qwen99"]),
    "a kind of model that is a number": Case(edit_config(model_type=2), ["names no model_type"]),
    "a larger vocabulary": Case(edit_config(vocab_size=500), [EMBEDDINGS, "[500, 32]"]),
    "a wider model": Case(edit_config(hidden_size=64), [EMBEDDINGS, "[300, 64]"]),
    "a size in words": Case(edit_config(hidden_size="wide"), ["config.json"]),
    "a negative size": Case(edit_config(hidden_size=-32), ["config.json"]),
    "no heads": Case(edit_config(num_attention_heads=0), ["config.json"]),
    "an activation that there is not": Case(edit_config(hidden_act="slu"), ["config.json", "slu"]),
    "a dtype that there is not": Case(edit_config(dtype="float99"), ["config.json"]),
    "code of its own": Case(edit_config(model_type="own", auto_map=REMOTE), ["trust_remote_code"]),
    "code of its own, which is not there": Case(
        edit_config(model_type="own", auto_map=REMOTE), ["own"], ("--trust_remote_code",)
    ),
    "code of its own, and no kind of model": Case(
        edit_config(model_type=None, auto_map=REMOTE), ["comes with code of its own", "--trust_remote_code"]
    ),
    "an encoder": Case(edit_config(model_type="bert", architectures=["BertForMaskedLM"]), ["left to right"]),
    "an encoder without a head": Case(
        edit_config(model_type="distilbert", architectures=["DistilBertModel"]), ["no causal language model"]
    ),
    "an encoder and a decoder": Case(
        edit_config(model_type="t5", is_encoder_decoder=True, architectures=["T5ForConditionalGeneration"]),
        ["encoder and a decoder"],
    ),
    "a model of images": Case(
        edit_config(model_type="vit", architectures=["ViTForImageClassification"]), ["left to right"]
    ),
    "a model of images and texts": Case(
        edit_config(model_type="clip", architectures=["CLIPModel"]), ["no causal language model"]
    ),
    "a model of speech": Case(edit_config(model_type="wav2vec2", architectures=["Wav2Vec2Model"]), ["language model"]),
    "settings of generation that are not JSON": Case(write("generation_config.json", "{"), ["generation_config.json"]),
    "settings of generation in a list": Case(write("generation_config.json", "[]"), ["generation_config.json"]),
    "settings of generation with a wrong EOS": Case(
        write("generation_config.json", '{"eos_token_id": "<|im_end|>"}'), ["generation_config.json", "eos_token_id"]
    ),
    # Adapters
    "an adapter of nothing": Case(adapter_with(base_model_name_or_path=None), ["which model it adapts"]),
    "an adapter of a folder that is not here": Case(adapter_with(base_model_name_or_path="/no/where"), ["/no/where"]),
    "an adapter of no kind": Case(adapter_with(peft_type=None), ["peft_type"]),
    "an adapter of an unknown kind": Case(adapter_with(peft_type="LARO"), ["LARO"], loads=True),
    "an adapter of another task": Case(adapter_with(task_type="SEQ_2_SEQ_LM"), ["SEQ_2_SEQ_LM"], loads=True),
    "an adapter's config that is not JSON": Case(
        as_adapter(write("adapter_config.json", "{")), ["adapter_config.json", "not JSON"]
    ),
    "an adapter's config that is a list": Case(
        as_adapter(write("adapter_config.json", "[]")), ["adapter_config.json", "not a mapping"]
    ),
    "an adapter without weights": Case(as_adapter(remove(ADAPTER)), ["holds no weights"]),
    "an adapter cut off": Case(as_adapter(cut(ADAPTER, 10)), [WHOLE, ADAPTER]),
    "an adapter of another rank": Case(adapter_with(r=4), [LORA, "rank 2", "r is 4"]),
    "an adapter of a wider model": Case(
        adapter_weights(lambda w: w.update({LORA: np.ones((2, 64), np.float32)})), ["64"], loads=True
    ),
    "an adapter of a deeper model": Case(
        adapter_weights(lambda w: w.update({LORA.replace("layers.0", "layers.7"): w[LORA]})),
        ["made for another model"],
        loads=True,
    ),
    "an adapter of which a part is missing": Case(
        adapter_weights(lambda w: w.pop(LORA)), ["weights are missing", "lora_A"], loads=True
    ),
    "an adapter of other layers": Case(adapter_with(target_modules=["qkv_proj"]), ["qkv_proj"], loads=True),
    "an adapter with NaN": Case(adapter_weights(lambda w: w[LORA].fill(np.nan)), ["not all finite"], loads=True),
    "an adapter of an adapter": Case(adapter_of_adapter, ["is an adapter, and its base", "merge that"]),
    "an adapter on an adapter": Case(as_adapter(), ["use_peft"], ("--use_peft",)),
    "an adapter of a broken base": Case(
        as_adapter(lambda folder: cut("model.safetensors", 9)(folder.with_name("base"))), [WHOLE]
    ),
    # Reward models
    "a classifier with two labels": Case(as_classifier(2), ["2 labels"], REWARD, "reward", True),
    "a classifier without its head": Case(
        as_classifier(head=False), ["weights are missing", "score"], REWARD, "reward"
    ),
    "a classifier with a head of another size": Case(
        both(as_classifier(), of_shape("score.weight", 1, 16)), ["score.weight", "[1, 16]"], REWARD, "reward"
    ),
    "a classifier with a broken body": Case(
        both(as_classifier(), without(Q)), ["weights are missing", Q], REWARD, "reward"
    ),
    "a body that is missing a tensor": Case(without(Q), ["weights are missing", Q], REWARD, "reward"),
    "a reward model that is none": Case(
        lambda folder: None, ["no score head"], ("--reward_model_name_or_path", "{model}"), "grpo"
    ),
    "a reward model that is pickled": Case(
        lambda folder: pickled_beside(folder), ["pickled"], ("--reward_model_name_or_path", "{model}2"), "grpo"
    ),
    "a reward model that is cut off": Case(
        lambda folder: cut_beside(folder), [WHOLE], ("--reward_model_name_or_path", "{model}2"), "grpo"
    ),
    # The reference
    "a reference without weights": Case(
        lambda folder: beside(folder, remove("model.safetensors")),
        ["ref_model_name_or_path", "holds no weights"],
        ("--ref_model_name_or_path", "{model}2"),
        "dpo",
    ),
    "a reference that misses a tensor": Case(
        lambda folder: beside(folder, without(Q)),
        ["--ref_model_name_or_path", "weights are missing"],
        ("--ref_model_name_or_path", "{model}2"),
        "dpo",
    ),
}
