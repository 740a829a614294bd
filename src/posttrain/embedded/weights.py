"""The base model: a small Qwen2 whose random weights are the same bits on every machine.

A weight is a sum of four bytes of a SHAKE-256 stream, less its mean, times a power of two: every operation is exact in
float32, so that no library's random generator and no vector instruction has a say. The sum of four is close enough to
a normal distribution.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

# The sum of four uniform bytes has a standard deviation of 148; the weights get one of 0.036. (Half of that, which is
# transformers' own, learns the task more slowly; twice as much learns it worse.)
SCALE = np.float32(2.0**-12)


def weight_shapes(sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Name and shape of each weight of a Qwen2 with tied embeddings, from the sizes in its config.json."""
    hidden, inner = sizes["hidden_size"], sizes["intermediate_size"]
    keys = hidden // sizes["num_attention_heads"] * sizes["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (sizes["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    for index in range(sizes["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        for name, size in (("q", hidden), ("k", keys), ("v", keys)):
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = (size, hidden)
            shapes[f"{layer}.self_attn.{name}_proj.bias"] = (size,)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (hidden, hidden)
        shapes[f"{layer}.mlp.gate_proj.weight"] = (inner, hidden)
        shapes[f"{layer}.mlp.up_proj.weight"] = (inner, hidden)
        shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, inner)
        shapes[f"{layer}.input_layernorm.weight"] = (hidden,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
    return shapes


def count_parameters(sizes: Mapping[str, int]) -> int:
    """The number of weights; the output head shares those of the embeddings."""
    return sum(math.prod(shape) for shape in weight_shapes(sizes).values())


def draw_weights(sizes: Mapping[str, int], seed: int) -> dict[str, np.ndarray]:
    """Draw the weights, float32.

    Args:
        sizes: as in config.json.
        seed: each weight's bytes come from this and its name.
    """
    weights = {}
    for name, shape in weight_shapes(sizes).items():
        if name.endswith("norm.weight"):
            weights[name] = np.ones(shape, dtype=np.float32)
        elif name.endswith(".bias"):
            weights[name] = np.zeros(shape, dtype=np.float32)
        else:
            count = shape[0] * shape[1]
            stream = hashlib.shake_256(f"{seed}/{name}".encode()).digest(4 * count)
            sums = np.frombuffer(stream, dtype=np.uint8).reshape(count, 4).sum(axis=1, dtype=np.int32) - 510
            weights[name] = (sums.astype(np.float32) * SCALE).reshape(shape)
    return weights


def write_model(sizes: Mapping[str, int], seed: int, folder: Path) -> None:
    """Write config.json, generation_config.json and model.safetensors."""
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "dtype": "float32",
        "eos_token_id": 2,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 1024,
        "model_type": "qwen2",
        "pad_token_id": 0,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "use_cache": True,
        **sizes,
    }
    generation = {"do_sample": False, "eos_token_id": 2, "pad_token_id": 0}
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    weights = folder / "model.safetensors"
    save_file(draw_weights(sizes, seed), weights, metadata={"format": "pt"})
    weights.chmod((folder / "config.json").stat().st_mode)  # safetensors writes files for their owner alone
