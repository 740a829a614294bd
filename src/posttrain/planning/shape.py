"""A model by its config alone: how many parameters it has, what they take, and what a token of it costs."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.adapters import without_weights, wrap
from posttrain.config.paths import adapter_base
from posttrain.errors import UserError
from posttrain.planning.activations import Saved, by_formula, saved_for_backward

if TYPE_CHECKING:
    import torch

    from posttrain.config import CommonConfig

# Bytes a parameter of a quantised layer, with a float32 scale for 64 of them; 8 bits with their scales nested
# (QLoRA, arXiv 2305.14314, section 3), and outliers' bookkeeping of LLM.int8().
_FOUR_BIT, _FOUR_BIT_NESTED, _EIGHT_BIT = 0.5 + 4 / 64, 0.5 + 1 / 64 + 4 / (64 * 256), 1.0 + 1 / 64
_HEADS = ("lm_head", "score", "classifier", "embed_out", "output")


@dataclass(frozen=True)
class ModelShape:
    """What is known of a model without its weights.

    Args:
        name: folder or hub id.
        kind: its class.
        num_parameters: of the model, without adapters.
        num_trained: of those that have a gradient: all, or those of the adapters.
        weight_bytes: of all parameters as they are held, adapters included.
        trained_bytes: of the trained ones, one number each.
        per_token: parameters that multiply each token, without embeddings and head; of experts those that are asked.
        head: parameters of the output head.
        laid_out: bytes of weights that sampling on a CPU lays out a second time (rollout/written_out.py).
        vocabulary, hidden, layers: V, H, number of layers.
        query, key: widths of all heads, and of all key heads, of a layer.
        inner: width of the feed-forward network; of experts, of those that a token goes to.
        positions: that it knows; None where that is not known, or any number.
        number: bytes of a number of its activations.
        by_segments: it attends by segments; False: rows are padded.
        saved: activations.
        forward_products, backward_products: of its linear layers without the head, those of different shape, for rows
            of one size.
    """

    name: str
    kind: str
    num_parameters: int
    num_trained: int
    weight_bytes: int
    trained_bytes: int
    per_token: int
    head: int
    laid_out: int
    vocabulary: int
    hidden: int
    layers: int
    query: int
    key: int
    inner: int
    positions: int | None
    number: int
    by_segments: bool
    saved: Saved
    forward_products: int = 0
    backward_products: int = 0

    @property
    def trained_share(self) -> float:
        """Of all parameters, those of adapters counted in."""
        return self.num_trained / max(self.num_parameters, self.num_trained)


def shape_of(config: CommonConfig, autocast: torch.dtype | None, on_gpu: bool) -> ModelShape:
    """Look at a model's config; no weight is read.

    Args:
        config: of the run.
        autocast: type of products under autocast; None: without.
        on_gpu: where it is to be trained.

    Raises:
        UserError: its config cannot be had, or adapters do not fit the model.
    """
    from posttrain.rollout.written_out import bytes_laid_out

    name = str(config.model_name_or_path)
    base = adapter_base(name)
    if base is not None:  # it is merged
        config = dataclasses.replace(config, model_name_or_path=base, model_revision="main")
    model: Any = without_weights(config)
    if model is None:
        raise UserError(
            f"--model_name_or_path {name}: a plan needs its config.json, which cannot be had or made a model of; name "
            "a folder with config.json and tokenizer, or a model of the hub",
            "plan.md#what-it-needs",
        )
    about = model.config.get_text_config()
    weights = _dtype_of(config, about, on_gpu)
    model.to(weights)
    plain = list(model.named_parameters())
    counts = dict(_counts(model, about))
    num_parameters = sum(value.numel() for _, value in plain)
    bytes_held = sum(_bytes_of(config, name, value) for name, value in plain)
    is_segmented = config.attn_implementation is None and _may_attend_by_segments(model)
    kind = type(model).__name__
    trained, num_trained = weights.itemsize * num_parameters, num_parameters
    adapted = model
    if config.use_peft:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = wrap(model, config)
        own = [value for value in adapted.parameters() if value.requires_grad]
        num_trained = sum(value.numel() for value in own)
        # peft keeps adapters in float32, whatever the weights beside them are in.
        trained = sum(value.numel() * max(4, value.element_size()) for value in own)
        bytes_held += trained
    heads = int(getattr(about, "num_attention_heads", 0) or 1)
    size = int(getattr(about, "head_dim", None) or about.hidden_size // heads)
    key_heads = int(getattr(about, "num_key_value_heads", None) or heads)
    number = 4 if weights.itemsize > 2 else 2
    hidden, layers = int(about.hidden_size), int(about.num_hidden_layers)
    inner = _inner(about, hidden)
    saved = saved_for_backward(config, weights, autocast, on_gpu) or by_formula(
        hidden, inner, heads * size, key_heads * size, 2 if autocast is not None else number
    )
    return ModelShape(
        name=name,
        kind=kind,
        num_parameters=num_parameters,
        num_trained=num_trained,
        weight_bytes=int(bytes_held),
        trained_bytes=trained,
        vocabulary=int(about.vocab_size),
        hidden=hidden,
        layers=layers,
        query=heads * size,
        key=key_heads * size,
        inner=inner,
        positions=getattr(about, "max_position_embeddings", None),
        number=number,
        laid_out=bytes_laid_out(model, autocast or weights),
        by_segments=is_segmented,
        saved=saved,
        **counts,
        **_products(adapted, model.get_output_embeddings()),
    )


def _products(model: Any, head: Any) -> dict[str, int]:
    """Of linear layers: a product forward, two backward, one of frozen weights."""
    import torch

    layers = [one for one in model.modules() if isinstance(one, torch.nn.Linear) and one is not head]
    forward = {(*one.weight.shape, one.bias is None) for one in layers}
    backward = {(*one.weight.shape, kind) for one in layers for kind in (False, one.weight.requires_grad)}
    return {"forward_products": len(forward), "backward_products": len(backward)}


def _counts(model: Any, about: Any) -> dict[str, int]:
    head = model.get_output_embeddings()
    table = model.get_input_embeddings().weight
    per_token = 0
    for name, value in model.named_parameters():
        if value is table or value.ndim < 2 or name.split(".")[0] in _HEADS:
            continue
        share = 1.0
        if value.ndim == 3:  # experts
            asked = int(getattr(about, "num_experts_per_tok", None) or value.shape[0])
            share = min(1.0, asked / value.shape[0])
        per_token += int(value.numel() * share)
    size = 0 if head is None else head.weight.numel()
    return {"per_token": per_token, "head": size}


def _inner(about: Any, hidden: int) -> int:
    asked = getattr(about, "num_experts_per_tok", None)
    width = getattr(about, "moe_intermediate_size", None) if asked else None
    if asked:
        return int(asked) * int(width or about.intermediate_size)
    return int(getattr(about, "intermediate_size", None) or getattr(about, "n_inner", None) or 4 * hidden)


def _dtype_of(config: CommonConfig, about: Any, on_gpu: bool) -> torch.dtype:
    """The type that weights are held in, or that is computed in where they are quantised."""
    import torch

    if (config.load_in_4bit or config.load_in_8bit) and "dtype" not in config.explicit and on_gpu:
        return torch.bfloat16
    if config.dtype in (None, "auto"):
        own = getattr(about, "dtype", None)
        return own if isinstance(own, torch.dtype) else torch.float32
    found = getattr(torch, str(config.dtype))
    assert isinstance(found, torch.dtype)
    return found


def _bytes_of(config: CommonConfig, name: str, value: Any) -> float:
    """What a parameter takes as it is loaded: bitsandbytes quantises linear layers but for the head."""
    is_linear = value.ndim == 2 and "embed" not in name and name.split(".")[0] not in _HEADS
    if is_linear and config.load_in_4bit:
        return float(value.numel() * (_FOUR_BIT_NESTED if config.use_bnb_nested_quant else _FOUR_BIT))
    if is_linear and config.load_in_8bit:
        return float(value.numel() * _EIGHT_BIT)
    return float(value.numel() * value.element_size())


def _may_attend_by_segments(model: Any) -> bool:
    from posttrain.scoring import may_attend_by_segments

    return may_attend_by_segments(model)


def size_of_other(name: str, fallback: ModelShape) -> tuple[int, int, bool]:
    """Parameters, bytes of them as they are stored, and whether that is known, of a model beside the policy.

    Args:
        name: folder or hub id.
        fallback: of whose size it is taken to be where its config cannot be had.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    files = list(Path(name).expanduser().glob("*.safetensors"))
    base = adapter_base(name) or name
    try:
        about = AutoConfig.from_pretrained(base)
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(about)
    except Exception:  # of whatever kind: a stage before this one may be still to make it
        return fallback.num_parameters, fallback.num_parameters * 4, False
    count = sum(value.numel() for value in model.parameters())
    own = getattr(about, "dtype", None)
    size = own.itemsize if isinstance(own, torch.dtype) else 4
    stored = sum(file.stat().st_size for file in files)
    return count, max(stored, count * size if base == name else 0) or count * size, True
