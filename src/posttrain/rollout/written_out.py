"""A step of sampling on a CPU, written out for the models that most are: RMSNorm, rotary attention with grouped keys, a
gated feed-forward network.

Such a step is some hundreds of small operators in transformers' modules, and the Python around them; with a token of a
few dozen rows that takes longer than the products do. Here it is a third of them. For as long as completions are
sampled, weights are laid out for it: turned around (a product with few rows would do that each time), layers that are
given the same rows side by side in one matrix, and the factors of the norm before them multiplied in.

A norm is then x / sqrt(|x|² / H + ε) alone; with sqrt(H) among the factors, x / sqrt(|x|² + H ε).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from posttrain.decoding import DecodingState
from posttrain.logprobs import TargetHead

# Others have the same modules and add them up in another way (Granite's factors, SmolLM3's layers without positions),
# which a trial with new weights need not show.
_MODELS = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
# Rotary embeddings whose frequencies do not depend on how long the longest row is.
_ROTARY = {"default", "linear", "llama3", "yarn"}
# With more weights than these (a GiB in float32) products are what takes time, and memory what is short.
_MOST_WEIGHTS = 2**28


class _OtherError(Exception):
    """A model that is put together in another way."""


def written_out(model: PreTrainedModel, state: DecodingState, num_positions: int) -> WrittenOut | None:
    """A step of this model, with its weights as they are now; None where it is not of that kind.

    Args:
        model: on a CPU, with LoRA in its layers or without. Autocast, where it is on, says what products are in.
        state: which a pass over the prompts has filled.
        num_positions: that completions may reach.
    """
    kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else model.dtype
    if not bytes_laid_out(model, kind) or any(
        module is not model and _is_changed(module) for module in model.modules()
    ):
        return None
    try:
        return WrittenOut(model, state, num_positions, kind)
    except _OtherError:
        return None


def bytes_laid_out(model: PreTrainedModel, kind: torch.dtype) -> int:
    """What its weights take a second time while completions are sampled; 0 where a step of it is not written out.

    Args:
        model: on any device.
        kind: type of products.
    """
    numbers = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))
    return numbers * kind.itemsize if type(model).__name__ in _MODELS and numbers <= _MOST_WEIGHTS else 0


class WrittenOut:
    """From a token of every row to the logits of the next; see `written_out`."""

    def __init__(self, model: Any, state: DecodingState, num_positions: int, kind: torch.dtype) -> None:
        body, table, head = model.model, model.get_input_embeddings(), model.get_output_embeddings()
        if type(table) is not nn.Embedding or getattr(body.rotary_emb, "rope_type", None) not in _ROTARY:
            raise _OtherError
        self._state, self._table = state, table.weight.detach()
        self._layers = [_layer(layer, kind) for layer in body.layers]
        self._head = _Product([head], kind, body.norm)
        attention = body.layers[0].self_attn
        self._size = attention.head_dim
        self._heads, self._key_heads = (
            _plain(projection).out_features // self._size for projection in (attention.q_proj, attention.k_proj)
        )
        cosines, sines = body.rotary_emb(self._table, torch.arange(num_positions)[None])
        # As a sum over what is turned by half a head: the first half of it is subtracted.
        first, second = sines[0].chunk(2, -1)
        self._turns = torch.cat([cosines[0], -first, second], -1)

    def __call__(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """One token of every row.

        Args:
            tokens: (R,) ids.
            positions: (R,) of these tokens.

        Returns:
            (R, V) logits.
        """
        with torch.autocast("cpu", enabled=False):
            hidden = self._table.index_select(0, tokens)
            cosines, sines = self._turns.index_select(0, positions)[:, None].split(self._size, -1)
            for layer in self._layers:
                hidden += self._attended(layer, hidden, cosines, sines)
                gate, up = layer.gates(_normed(hidden, layer.epsilon)).chunk(2, -1)
                hidden += layer.down(layer.activation(gate).mul_(up))
            return self._head(_normed(hidden, self._layers[0].epsilon))

    def _attended(
        self, layer: _Layer, hidden: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor
    ) -> torch.Tensor:
        projected = layer.projections(_normed(hidden, layer.epsilon))
        heads = projected.view(len(hidden), -1, self._size)
        turning, values = heads.split([self._heads + self._key_heads, self._key_heads], 1)
        if layer.head_factors is not None:
            turning = _normed(turning, layer.head_epsilon).mul_(layer.head_factors)
        first, second = turning.chunk(2, -1)
        turned = (turning * cosines).addcmul_(torch.cat([second, first], -1), sines)
        queries, keys = turned[:, :, None].split([self._heads, self._key_heads], 1)
        output = self._state.attend(layer.number, queries, keys, values[:, :, None], *self._state.asked[layer.number])
        return layer.output(output.view(len(hidden), -1))


class _Layer(NamedTuple):
    """A decoder layer; `epsilon` is what is added to a squared length before its root is taken, as a root."""

    number: int
    epsilon: torch.Tensor
    projections: _Product
    head_factors: torch.Tensor | None  # (heads + key heads, D), of norms of each query and key
    head_epsilon: torch.Tensor
    output: _Product
    gates: _Product
    activation: Callable[[torch.Tensor], torch.Tensor]
    down: _Product


def _layer(layer: Any, kind: torch.dtype) -> _Layer:
    attention, feed = layer.self_attn, layer.mlp
    projections = [attention.q_proj, attention.k_proj, attention.v_proj]
    factors, small = None, layer.input_layernorm
    if hasattr(attention, "q_norm"):
        counts = [_plain(one).out_features // attention.head_dim for one in projections[:2]]
        norms = [attention.q_norm, attention.k_norm]
        factors = torch.cat([_factors(norm).expand(n, -1) for norm, n in zip(norms, counts, strict=True)])
        small = attention.q_norm
    return _Layer(
        attention.layer_idx,
        _epsilon(layer.input_layernorm),
        _Product(projections, kind, layer.input_layernorm),
        factors,
        _epsilon(small),
        _Product([attention.o_proj], kind),
        _Product([feed.gate_proj, feed.up_proj], kind, layer.post_attention_layernorm),
        feed.act_fn,
        _Product([feed.down_proj], kind),
    )


class _Product:
    """Rows (R, K) times the weights of several layers: (R, their outputs), in a type of products.

    Adapters are added to weights in float32. In half precision, where a small change would be rounded away, rows times
    their first factors stand beside the rows, and the second ones beside the weights.
    """

    def __init__(self, layers: Sequence[Any], kind: torch.dtype, norm: Any = None) -> None:
        plain, adapters = [_plain(layer) for layer in layers], [_adapters(layer) for layer in layers]
        weights = [layer.weight.detach() for layer in plain]
        factors = 1.0 if norm is None else _factors(norm)
        self._kind = kind
        self._down: Callable[[torch.Tensor], torch.Tensor] | None = None
        ups: list[torch.Tensor] = []  # (N, r)
        if kind == torch.float32:
            weights = [sum((b @ a for a, b in own), weight) for weight, own in zip(weights, adapters, strict=True)]
        elif any(adapters):
            self._down = _laid_out((torch.cat([a for own in adapters for a, _ in own]) * factors).to(kind), None)
            parts = [[weight[:, :0], *(b for _, b in own)] for weight, own in zip(weights, adapters, strict=True)]
            ups = [torch.block_diag(*(torch.cat(own, 1) for own in parts))]
        together = torch.cat(weights) if norm is None else torch.cat(weights) * factors
        if ups:
            together = torch.cat([together, *ups], 1)
        bias: torch.Tensor | None = None
        if any(layer.bias is not None for layer in plain):
            biases = [torch.zeros(layer.out_features) if layer.bias is None else layer.bias for layer in plain]
            bias = torch.cat([one.detach() for one in biases]).to(kind)
        self._all = _laid_out(together.to(kind), bias)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        rows = rows.to(self._kind)
        return self._all(rows if self._down is None else torch.cat([rows, self._down(rows)], 1))


def _laid_out(weight: torch.Tensor, bias: torch.Tensor | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """(R, K) → (R, N), with a weight (N, K) in the order that a product with few rows reads: each would bring it there
    anew."""
    if _is_multiplied_by_onednn(weight.dtype):
        # As torch's compiler does, in which alone these are documented; the engine tries what comes of it.
        ordered = torch.ops.mkldnn._reorder_linear_weight(weight)
        return lambda rows: torch.ops.mkldnn._linear_pointwise(rows, ordered, bias, "none", [], "")
    turned = weight.t().contiguous()
    return lambda rows: rows @ turned if bias is None else torch.addmm(bias, rows, turned)


def _is_multiplied_by_onednn(kind: torch.dtype) -> bool:
    supported = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}.get(kind)
    return supported is not None and torch.backends.mkldnn.is_available() and getattr(torch.ops.mkldnn, supported)()


def _factors(norm: Any) -> torch.Tensor:
    weight: torch.Tensor = norm.weight.detach()
    return weight * math.sqrt(len(weight))


def _epsilon(norm: Any) -> torch.Tensor:
    return torch.tensor(math.sqrt(len(norm.weight) * norm.variance_epsilon))


def _normed(rows: torch.Tensor, epsilon: torch.Tensor) -> torch.Tensor:
    return rows / torch.hypot(torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=torch.float32), epsilon)


def _is_changed(module: nn.Module) -> bool:
    """Whether it does more than its class says."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _plain(layer: Any) -> nn.Linear:
    """A linear layer, or the one inside of LoRA."""
    inner = layer.base_layer if type(layer).__name__ == "Linear" and hasattr(layer, "lora_variant") else layer
    if type(inner) not in (nn.Linear, TargetHead):
        raise _OtherError
    return inner


def _adapters(layer: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(r, K) and (N, r) of each adapter at work in a layer of peft: what it adds to the weight is the second times the
    first."""
    if isinstance(layer, nn.Linear) or layer.disable_adapters or layer.merged:
        return []
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if any(name in layer.lora_variant or layer.lora_bias[name] for name in names) or layer.fan_in_fan_out:
        raise _OtherError
    return [
        (layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach() * layer.scaling[name]) for name in names
    ]
