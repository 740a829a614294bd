"""Broken model folders: a way to break a whole one, and what the message says."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from model_folders import (
    as_adapter,
    as_classifier,
    both,
    edit_config,
    edit_header,
    edit_json,
    edit_weights,
    remove,
    shards,
    write,
)

SHARD = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
EMBEDDINGS = "model.embed_tokens.weight"
Q = "model.layers.1.self_attn.q_proj.weight"
NORM = "model.norm.weight"


class Case(NamedTuple):
    """A broken folder.

    Args:
        change: breaks a whole folder.
        said: in the message.
        flags: of the command line, besides the needed ones.
        method: of the command line.
        loads: whether it is known only once weights are read.
    """

    change: Callable[[Path], object]
    said: list[str]
    flags: tuple[str, ...] = ()
    method: str = "sft"
    loads: bool = False


def setting(name: str, value: float) -> Callable[[Path], None]:
    """One number of a tensor."""
    return edit_weights(lambda weights: weights[name].reshape(-1).__setitem__(7, value))


def without(name: str) -> Callable[[Path], None]:
    return edit_weights(lambda weights: weights.pop(name))


def of_shape(name: str, *shape: int) -> Callable[[Path], None]:
    return edit_weights(lambda weights: weights.update({name: np.ones(shape, np.float32)}))


def cut(name: str, count: int) -> Callable[[Path], None]:
    """A file that ends early."""

    def make(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) - count])

    return make


def replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Something else where the folder was."""

    def change(folder: Path) -> None:
        shutil.rmtree(folder)
        make(folder)

    return change


def linked_in_a_circle(folder: Path) -> None:
    other = folder.with_name("other")
    other.symlink_to(folder)
    folder.symlink_to(other)


def pickled(name: str) -> Callable[[Path], None]:
    """Weights that run a command when they are read by somebody who trusts them."""

    class Trap:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return os.system, ("touch /tmp/w-a-pickle-was-read",)

    return write(name, pickle.dumps(Trap()))


def adapter_of_adapter(folder: Path) -> None:
    as_adapter()(folder)
    other = folder.with_name("inner")
    shutil.copytree(folder, other)
    edit_json(folder / "adapter_config.json", base_model_name_or_path=str(other))


def manifest(folder: Path, size: int | None = None, sha256: str | None = None) -> None:
    import hashlib
    import json

    file = folder / "model.safetensors"
    about = {"size": file.stat().st_size if size is None else size}
    about["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest() if sha256 is None else sha256
    (folder / "manifest.json").write_text(json.dumps({"files": {file.name: about}}))


REMOTE = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
LORA = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
ADAPTER = "adapter_model.safetensors"
REWARD = ("--max_length", "512")
WHOLE = "a file of its weights is not whole"


def adapter_with(**changes: object) -> Callable[[Path], None]:
    return as_adapter(lambda folder: edit_json(folder / "adapter_config.json", **changes))


def adapter_weights(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    return as_adapter(edit_weights(change, ADAPTER))


CASES: dict[str, Case] = {
    # The folder
    "an empty folder": Case(replaced(lambda folder: folder.mkdir()), ["has no config.json"]),
    "a file": Case(replaced(lambda folder: folder.write_text("")), ["is a file"]),
    "nothing": Case(replaced(lambda folder: None), ["does not exist"]),
    "links in a circle": Case(replaced(linked_in_a_circle), ["model_name_or_path"]),
    "a dangling link": Case(replaced(lambda folder: folder.symlink_to("nowhere")), ["dangling link"]),
    "no config": Case(remove("config.json"), ["has no config.json"]),
    "no weights": Case(remove("model.safetensors"), ["holds no weights"]),
    "a folder in the weights' place": Case(
        both(remove("model.safetensors"), lambda folder: (folder / "model.safetensors").mkdir()), ["holds no weights"]
    ),
    "a manifest with another hash": Case(lambda f: manifest(f, sha256="0" * 64), ["is not whole", "model.safetensors"]),
    "a manifest with another size": Case(lambda f: manifest(f, size=1), ["is not whole", "bytes"]),
    "a manifest that is not JSON": Case(write("manifest.json", "{"), ["manifest.json cannot be read"]),
    "a manifest of nothing": Case(write("manifest.json", "[]"), ["manifest.json cannot be read"]),
    "a manifest with a file too many": Case(
        write("manifest.json", '{"files": {"more.safetensors": {"size": 1, "sha256": "0"}}}'),
        ["more.safetensors is missing"],
    ),
    # Weights
    "empty weights": Case(write("model.safetensors", b""), [WHOLE, "0 bytes"]),
    "weights of five bytes": Case(write("model.safetensors", b"12345"), [WHOLE, "5 bytes"]),
    "weights cut off": Case(cut("model.safetensors", 100), [WHOLE, "model.safetensors"]),
    "weights cut off in the header": Case(write("model.safetensors", (999).to_bytes(8, "little") + b"{"), [WHOLE]),
    "weights of zeros": Case(write("model.safetensors", bytes(4096)), [WHOLE]),
    "a header of terabytes": Case(write("model.safetensors", b"\xff" * 64), [WHOLE]),
    "a header that is not JSON": Case(write("model.safetensors", (4).to_bytes(8, "little") + b"abcd"), [WHOLE]),
    "a header that is a list": Case(write("model.safetensors", (2).to_bytes(8, "little") + b"[]"), [WHOLE]),
    "a header nested deep": Case(
        write("model.safetensors", (100_000).to_bytes(8, "little") + b"[" * 100_000), [WHOLE, "not JSON"]
    ),
    "a header with a negative shape": Case(edit_header(lambda h: h[Q].update(shape=[-32, -32])), [WHOLE, Q]),
    "a header with a shape of words": Case(edit_header(lambda h: h[Q].update(shape="32x32")), [WHOLE, Q]),
    "a header with a place too far": Case(edit_header(lambda h: h[Q].update(data_offsets=[0, 2**40])), [WHOLE, Q]),
    "a header without a type": Case(edit_header(lambda h: h[Q].pop("dtype")), [WHOLE, Q]),
    "a header with another type": Case(edit_header(lambda h: h[Q].update(dtype="F64")), [WHOLE, Q]),
    "bytes behind the weights": Case(
        lambda f: void_append(f / "model.safetensors", b"more"), [WHOLE, "bytes of weights in place of"]
    ),
    "a pointer of Git LFS": Case(
        write("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"), ["Git LFS"]
    ),
    "a page of HTML": Case(write("model.safetensors", "<!DOCTYPE html><html><body>Not found</body></html>"), [WHOLE]),
    "no tensor": Case(write("model.safetensors", (2).to_bytes(8, "little") + b"{}"), ["weights are missing"]),
    "a tensor missing": Case(without(Q), ["weights are missing", Q]),
    "a norm missing": Case(without(NORM), ["weights are missing", NORM]),
    "the embeddings missing": Case(without(EMBEDDINGS), ["weights are missing", EMBEDDINGS]),
    "an untied head missing": Case(edit_config(tie_word_embeddings=False), ["weights are missing", "lm_head.weight"]),
    "a tensor of another shape": Case(of_shape(Q, 32, 16), [Q, "[32, 16]", "[32, 32]"]),
    "a tensor of nothing": Case(of_shape(Q, 0, 32), [Q, "[0, 32]"]),
    "a tensor turned round": Case(of_shape("model.layers.0.mlp.up_proj.weight", 32, 64), ["up_proj"], loads=True),
    "fewer embeddings": Case(of_shape(EMBEDDINGS, 299, 32), [EMBEDDINGS, "[299, 32]"]),
    "weights of whole numbers": Case(edit_weights(lambda w: w.update({Q: np.ones((32, 32), np.int64)})), [Q, "I64"]),
    "NaN in a matrix": Case(setting(Q, np.nan), ["not all finite", Q], loads=True),
    "NaN in a norm": Case(setting(NORM, np.nan), ["not all finite", NORM], loads=True),
    "infinity in the embeddings": Case(setting(EMBEDDINGS, np.inf), ["not all finite", EMBEDDINGS], loads=True),
    "minus infinity in a bias": Case(setting(Q.replace("weight", "bias"), -np.inf), ["not all finite"], loads=True),
    "NaN everywhere": Case(
        edit_weights(lambda w: [value.fill(np.nan) for value in w.values()]), ["and 23 more"], loads=True
    ),
    "NaN in a model that is given rewards": Case(setting(Q, np.nan), ["not all finite", Q], REWARD, "reward", True),
    "a layer too many": Case(edit_config(num_hidden_layers=1), ["model.layers.1."]),
    "a layer too few": Case(edit_config(num_hidden_layers=3), ["weights are missing", "model.layers.2."]),
    "a layer missing": Case(
        edit_weights(lambda w: [w.pop(name) for name in list(w) if ".layers.1." in name]), ["weights are missing"]
    ),
    # Pickles
    "a pickle": Case(both(remove("model.safetensors"), pickled("pytorch_model.bin")), ["pickled", "convert them"]),
    "pickled shards": Case(both(remove("model.safetensors"), pickled("pytorch_model-00001-of-00001.bin")), ["pickled"]),
    "a pickle of another name": Case(both(remove("model.safetensors"), pickled("consolidated.00.pth")), ["pickled"]),
    "a pickled adapter": Case(
        as_adapter(both(remove(ADAPTER), pickled("adapter_model.bin"))), ["pickled", "adapter_model.bin"]
    ),
    "a pickled reward model": Case(
        both(remove("model.safetensors"), pickled("pytorch_model.bin")), ["pickled"], REWARD, "reward"
    ),
    # Shards
    "a shard missing": Case(both(shards(), remove(SHARD)), [f"{SHARD} is missing"]),
    "a shard that is empty": Case(both(shards(), write(SHARD, b"")), [WHOLE, SHARD]),
    "a shard cut off": Case(both(shards(), cut(SHARD, 1)), [WHOLE, SHARD]),
    "an index that is not JSON": Case(both(shards(), write(INDEX, "{")), [INDEX, "not JSON"]),
    "an index that is a list": Case(both(shards(), write(INDEX, "[]")), [INDEX, "not a mapping"]),
    "an index without places": Case(both(shards(), write(INDEX, "{}")), [INDEX]),
    "an index of nothing": Case(both(shards(), write(INDEX, '{"weight_map": {}}')), [INDEX]),
    "an index of numbers": Case(both(shards(), write(INDEX, '{"weight_map": {"a": 1}}')), [INDEX]),
    "an index to elsewhere": Case(
        shards(lambda f, places: places.update({Q: "../base/model.safetensors"})), ["is no file of this folder"]
    ),
    "an index to a shard that is not there": Case(
        shards(lambda f, p: p.update({Q: "x.safetensors"})), ["x.safetensors"]
    ),
    "an index with places exchanged": Case(
        shards(lambda f, p: p.update({Q: p[NORM], NORM: p[Q]} if p[Q] != p[NORM] else {Q: SHARD})), [INDEX]
    ),
    "an index with a tensor too many": Case(shards(lambda f, p: p.update({"more.weight": SHARD})), ["more.weight"]),
    "a shard of another model": Case(
        both(shards(), write(SHARD, (2).to_bytes(8, "little") + b"{}")), [SHARD, "is not in"]
    ),
    "shards without an index": Case(both(shards(), remove(INDEX)), [SHARD, INDEX]),
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


def void_append(file: Path, more: bytes) -> None:
    file.write_bytes(file.read_bytes() + more)


def beside(folder: Path, change: Callable[[Path], object]) -> None:
    """A broken copy, the folder itself whole."""
    other = folder.with_name(folder.name + "2")
    shutil.copytree(folder, other)
    change(other)


def pickled_beside(folder: Path) -> None:
    beside(folder, both(as_classifier(), remove("model.safetensors"), pickled("pytorch_model.bin")))


def cut_beside(folder: Path) -> None:
    beside(folder, both(as_classifier(), cut("model.safetensors", 10)))
