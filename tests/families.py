"""Tiny models of many families, made in the process."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import (
    BambaConfig,
    BambaForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB = 97
# Weights large enough that a token that sees too much or too little changes the result visibly.
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MAMBA = {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2, "expand": 2, "chunk_size": 8}
BAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_expand": 2}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
GPT2 = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.3}

# name → how to make it, and whether it can attend by segments
FAMILIES: dict[str, tuple[Callable[[], PreTrainedModel], bool]] = {
    "llama": (lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)), True),
    "qwen2": (lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True)), True),
    "qwen3": (lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=8)), True),
    "gemma3, sliding window": (
        lambda: Gemma3ForCausalLM(
            Gemma3TextConfig(**SHAPE, head_dim=8, sliding_window=4, layer_types=["sliding_attention", "full_attention"])
        ),
        True,
    ),
    "gemma2, soft caps": (lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8, sliding_window=4)), False),
    "gpt2, learned positions": (lambda: GPT2LMHeadModel(GPT2Config(**GPT2, bos_token_id=1, eos_token_id=2)), True),
    "phi3, fused projections": (lambda: Phi3ForCausalLM(Phi3Config(**SHAPE)), True),
    "mixtral": (lambda: MixtralForCausalLM(MixtralConfig(**SHAPE, num_local_experts=4)), True),
    "qwen2 moe": (lambda: Qwen2MoeForCausalLM(Qwen2MoeConfig(**SHAPE, **MOE)), True),
    "granite, scaled logits": (lambda: GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=3.0)), True),
    "mamba2, recurrent": (
        lambda: Mamba2ForCausalLM(
            Mamba2Config(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, eos_token_id=2, bos_token_id=1, **MAMBA)
        ),
        False,
    ),
    "bamba, hybrid": (lambda: BambaForCausalLM(BambaConfig(**SHAPE, **BAMBA, attn_layer_indices=[1])), False),
}


def make(family: str, seed: int = 0) -> PreTrainedModel:
    """A fresh model of a family in evaluation mode; the same seed, the same weights."""
    torch.manual_seed(seed)
    return FAMILIES[family][0]().eval()
