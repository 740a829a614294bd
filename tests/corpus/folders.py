"""Broken model folders: their files and weights."""

from __future__ import annotations

import numpy as np
from model_folders import (
    Case,
    as_adapter,
    both,
    cut,
    edit_config,
    edit_header,
    edit_weights,
    linked_in_a_circle,
    manifest,
    of_shape,
    pickled,
    remove,
    replaced,
    setting,
    shards,
    void_append,
    without,
    write,
)

SHARD = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
EMBEDDINGS = "model.embed_tokens.weight"
Q = "model.layers.1.self_attn.q_proj.weight"
NORM = "model.norm.weight"
ADAPTER = "adapter_model.safetensors"
REWARD = ("--max_length", "512")
WHOLE = "a file of its weights is not whole"

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
}
