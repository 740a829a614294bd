"""Whether what was read is a whole model: no weight missing, left out or of another shape, and all of them numbers."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from posttrain.config.model_files import PAGE, Shapes
from posttrain.errors import UserError
from posttrain.wording import first_line

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_SHOWN = 3


def check_loaded(
    what: str, model: PreTrainedModel, info: Mapping[str, Any], new: Iterable[str] = (), changed: bool = False
) -> None:
    """Check what transformers says of a model that it has loaded, and its numbers.

    Args:
        what: the flag and its value.
        model: as loaded.
        info: the loading info of from_pretrained.
        new: the first words of names that may have been missing.
        changed: whether the user has changed the config, say to fewer layers: what is left out then is told, not
            refused.

    Raises:
        UserError: weights were missing, and would be random; or are not finite.
    """
    for name, found, wanted in sorted(info.get("mismatched_keys") or ()):
        raise UserError(
            f"{what}: {name} has the shape {list(found)} in its files, and {list(wanted)} by its config.json; they are "
            "not of the same model",
            PAGE,
        )
    refuse_missing(what, [name for name in info["missing_keys"] if name.split(".")[0] not in new])
    unexpected = sorted(info["unexpected_keys"])
    patterns = without_numbers(name for name, _ in model.named_parameters())
    beyond = [name for name in unexpected if is_layer(name) and without_numbers([name]) & patterns]
    if beyond and not changed:
        raise UserError(f"{what}: its files hold {some(beyond)}, which its config.json has no layer for", PAGE)
    if unexpected and not new:
        logger.warning("%s: not part of the model, and left out: %s", what, some(unexpected))
    check_finite(what, model)


def check_loaded_adapter(what: str, model: PeftModel, shapes: Shapes) -> None:
    """Raise for an adapter of which a part was left out, or is missing.

    Args:
        what: the flag and its value.
        model: its base, with the adapter.
        shapes: of the tensors in the adapter's file.
    """
    from peft import get_peft_model_state_dict

    own = {name for name in get_peft_model_state_dict(model, save_embedding_layers=False) if ".lora_" in name}
    there = {name for name in shapes if ".lora_" in name}
    if there - own:
        raise UserError(
            f"{what}: its base has no place for {some(sorted(there - own))}; the adapter was made for another model "
            "(base_model_name_or_path in its adapter_config.json)",
            PAGE,
        )
    refuse_missing(what, own - there)
    check_finite(what, model)


def settle_config(what: str, model: PreTrainedModel) -> None:
    """Raise for a config, changed by the user, that transformers would refuse to save; fewer layers than there are
    kinds of layers in a list are no reason for that."""
    about = model.config.get_text_config()
    kinds, layers = getattr(about, "layer_types", None), getattr(about, "num_hidden_layers", None)
    if kinds and layers and len(kinds) > layers:
        about.layer_types = kinds[:layers]
    try:
        getattr(model.config, "validate", dict)()  # which code of a model's own may lack
    except Exception as error:  # of whatever kind: its checks are those of many families
        raise UserError(f"{what}: --model_init_kwargs do not fit its config.json: {first_line(error)}", PAGE) from error


def refuse_missing(what: str, missing: Iterable[str]) -> None:
    """Raise for weights that are not in a model's files, and would be random.

    Args:
        what: the flag and its value.
        missing: their names.
    """
    names = sorted(missing)
    if names:
        raise UserError(
            f"{what}: weights are missing: {some(names)}; they would be random. Copy or download the model again", PAGE
        )


@torch.no_grad()
def check_finite(what: str, model: torch.nn.Module) -> None:
    """Raise for a weight that is NaN or infinite: nothing can be learnt from it, and every loss would be the same.

    Args:
        what: the flag and its value.
        model: as loaded; tensors that are elsewhere (meta) or quantised are not looked at.
    """
    bad = []
    for name, value in model.named_parameters():
        if value.is_floating_point() and value.dtype.itemsize > 1 and not value.is_meta and value.numel():
            ends = torch.stack(torch.aminmax(value.detach()))  # NaN if any is; one pass, and no copy
            if not bool(torch.isfinite(ends).all()):
                bad.append(name)
    if bad:
        raise UserError(
            f"{what}: its weights are not all finite numbers (NaN or infinite): {some(bad)}; take the model as it "
            "was before it diverged, or copy it again",
            PAGE,
        )


def is_layer(name: str) -> bool:
    """Whether a tensor's name has the number of a layer in it."""
    return any(word.isdigit() for word in name.split("."))


def without_numbers(names: Iterable[str]) -> set[str]:
    """Names of tensors, the same for all layers."""
    return {re.sub(r"\.\d+\.", ".N.", name) for name in names}


def some(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
