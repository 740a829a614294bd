"""LoRA adapters: what they are put on, checked on a model without weights, and the adapters themselves."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    set_seed,
)
from transformers.pytorch_utils import Conv1D

from posttrain.config import suggestion
from posttrain.errors import UserError
from posttrain.models import peft_warnings
from posttrain.quantisation import check_quantisation
from posttrain.wording import first_line

if TYPE_CHECKING:
    from posttrain.config import CommonConfig

ALL_LINEAR = "all-linear"
ADAPTABLE = (torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, Conv1D)


def check_adapter(config: CommonConfig) -> None:
    """Look for mistakes in the flags of adapters and quantisation, without loading weights: the model is built from
    its config alone, and the adapter is tried on it.

    Args:
        config: of the run.

    Raises:
        UserError: a module or parameter that is named is not in the model, peft refuses the adapter, or quantised
            weights are not to be had here.
    """
    check_quantisation(config)
    model = without_weights(config) if config.use_peft else None
    if model is None:
        return
    layers = [name for name, module in model.named_modules() if isinstance(module, ADAPTABLE)]
    targets = _targets(config, [name for name, _ in model.named_modules()])
    for target in _as_list(targets) if targets != ALL_LINEAR else []:
        fits = _matches if isinstance(targets, str) else _is_end
        if not any(fits(target, name) for name in layers):
            raise UserError(_unknown("lora_target_modules", "layer that can be adapted", target, layers))
    modules = [name for name, _ in model.named_modules() if name]
    for wanted in config.lora_modules_to_save or []:
        if not any(name.endswith(wanted) for name in modules):  # as peft does it: whole words or not
            raise UserError(_unknown("lora_modules_to_save", "module", wanted, modules))
    parameters = [name for name, value in model.named_parameters() if value.ndim > 1]
    loose = [name for name in parameters if name.rpartition(".")[0] not in layers]
    for wanted in config.lora_target_parameters or []:
        if not any(_is_end(wanted, name) for name in loose):
            raise UserError(
                _unknown("lora_target_parameters", "parameter apart from those of its layers", wanted, loose)
                + " (layers are for --lora_target_modules)"
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come when the adapter is made
        wrap(model, config)


def add_adapter(model: PreTrainedModel, config: CommonConfig) -> torch.nn.Module:
    """Wraps the model in a new LoRA adapter; its initial weights depend on the seed alone.

    Raises:
        UserError: the adapter does not fit the model.
    """
    # Beside quantised weights the others stay as they were loaded: peft's own preparation would make float32 of them,
    # and embeddings and head are large. Adapters are float32.
    if (config.gradient_checkpointing_kwargs or {}).get("use_reentrant"):
        model.enable_input_require_grads()  # else nothing that goes into a checkpointed layer has a gradient
    if config.seed is not None:
        set_seed(config.seed)
    return wrap(model, config)


def adapts_head(config: CommonConfig, model: PreTrainedModel) -> bool:
    """Whether the run puts a LoRA adapter on the output head of a model, which then has to compute its logits itself.

    Args:
        config: of the run.
        model: as loaded.
    """
    if not config.use_peft:
        return False
    head = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if module is head]
    if head is None or not names:
        return False
    targets = _targets(config, [name for name, _ in model.named_modules()])
    parameters = config.lora_target_parameters or []
    on_module = targets not in (None, ALL_LINEAR) and any(_matches(target, names[0]) for target in _as_list(targets))
    return on_module or any(_is_end(wanted, f"{names[0]}.weight") for wanted in parameters)


def wrap(model: PreTrainedModel, config: CommonConfig) -> torch.nn.Module:
    """The model in an adapter of the flags; with or without weights.

    Raises:
        UserError: the adapter does not fit the model.
    """
    from peft import LoraConfig, get_peft_model

    # Adapters of parameters know no dropout: the default gives way; a number that was asked for is peft's to refuse.
    no_dropout = config.lora_target_parameters is not None and "lora_dropout" not in config.explicit
    lora = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=0.0 if no_dropout else config.lora_dropout,
        target_modules=_targets(config, [name for name, _ in model.named_modules()]),
        target_parameters=config.lora_target_parameters,
        modules_to_save=config.lora_modules_to_save,
        task_type=config.lora_task_type,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
    )
    try:
        with peft_warnings():
            return get_peft_model(model, lora)
    except (ValueError, TypeError, RuntimeError) as error:
        about_dropout = "lora_dropout" in str(error)
        advice = (
            "give --lora_dropout 0" if about_dropout else "see --lora_target_modules (all-linear: all but the head)"
        )
        raise UserError(
            f"LoRA does not fit {config.model_name_or_path}: {first_line(error)}; {advice}",
            "troubleshooting.md#model-loading",
        ) from error


def without_weights(config: CommonConfig, num_layers: int | None = None) -> PreTrainedModel | None:
    """The model with tensors that have shapes and no memory; None where its config cannot be had, which loading it
    will complain about.

    Args:
        config: of the run.
        num_layers: as many in place of those that its config tells of.
    """
    kind = AutoModelForSequenceClassification if config.method == "reward" else AutoModelForCausalLM
    trust = config.trust_remote_code
    more = {"num_labels": 1} if config.method == "reward" else {}
    try:
        description = AutoConfig.from_pretrained(
            config.model_name_or_path, revision=config.model_revision, trust_remote_code=trust, **more
        )
        if num_layers is not None:
            description.num_hidden_layers = num_layers
            if getattr(description, "layer_types", None):
                description.layer_types = description.layer_types[:num_layers]
        with torch.device("meta"):
            return kind.from_config(description, trust_remote_code=trust)
    except Exception:  # of whatever kind: this is a look ahead, and no run is to end by it
        return None


def _targets(config: CommonConfig, modules: list[str]) -> Any:
    """The target modules as peft wants them: names in a list, or a regular expression (or all-linear) as text. One word
    that is the end of no module's name, but fits some as an expression, is one."""
    given = config.lora_target_modules
    if given is None or len(given) > 1 or given == [ALL_LINEAR]:
        return ALL_LINEAR if given == [ALL_LINEAR] else given
    alone = given[0]
    if any(_is_end(alone, name) for name in modules):
        return given
    return alone if any(_matches(alone, name) for name in modules) else given


def _as_list(targets: Any) -> list[str]:
    return [targets] if isinstance(targets, str) else list(targets or [])


def _is_end(target: str, name: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _matches(target: str, name: str) -> bool:
    """Whether a target is the end of a module's name, in whole words, or an expression for all of it."""
    if _is_end(target, name):
        return True
    try:
        return re.fullmatch(target, name) is not None
    except re.error:
        return False


def _unknown(flag: str, kind: str, wanted: str, names: Iterable[str]) -> str:
    """The message about a name that the model does not have: the nearest that it has, and all there are to choose from.

    Args:
        flag: without dashes.
        kind: what the name was taken for.
        wanted: what the user gave, of one or more words between dots.
        names: full names; their last words, as many as the user gave, are offered.
    """
    words = wanted.count(".") + 1
    ends = {".".join(name.split(".")[-words:]) for name in names}
    choices = sorted(end for end in ends if not any(part.isdigit() for part in end.split(".")))
    listed = (", ".join(choices[:24]) or "none") + (", …" if len(choices) > 24 else "")
    near = suggestion(wanted, choices) or "."
    return f"--{flag}: the model has no {kind} named {wanted!r}{near} It has: {listed}"
