"""Whether a model's files and its tokenizer fit its config, known before a weight is read."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from posttrain.checkpoints import check_model_folder
from posttrain.config.model_files import PAGE, Shapes, shapes_of
from posttrain.config.paths import adapter_base
from posttrain.errors import UserError
from posttrain.loaded_model import is_layer, refuse_missing, some, without_numbers
from posttrain.wording import first_line

if TYPE_CHECKING:
    from posttrain.config import CommonConfig

logger = logging.getLogger(__name__)

_MOST_NEW_TOKENS = 1000
# Names of the last layer of a classifier; peft's too, for what it saves with an adapter of one.
HEADS = ("score", "classifier")
# Some of the families of language models that transformers has a classifier for, for the message to those it has not.
FAMILIES = ("gemma2", "gemma3_text", "gpt2", "llama", "mistral", "mixtral", "phi3", "qwen2", "qwen2_moe", "qwen3")


def check_models(config: CommonConfig) -> None:
    """Look at the configs and, in folders, at the headers of the weights of the models that a run trains or compares
    with.

    Args:
        config: of the run.

    Raises:
        UserError: transformers has no such model, or the weights do not fit the config.
    """
    if os.environ.get("LOCAL_RANK", "0") == "0":  # once a machine: the hashes of large files take their time
        _check_manifests(config)
    is_reward = config.method == "reward"
    named = [("--model_name_or_path", config.model_name_or_path, config.model_revision, is_reward)]
    named.append(("--ref_model_name_or_path", getattr(config, "ref_model_name_or_path", None), "main", False))
    for flag, name, revision, is_classifier in named:
        if name is not None:
            base = adapter_base(name)
            what = f"{flag} {name}" if base is None else f"{flag} {name}: its base {base}"
            _check_model(config, what, base or name, revision if base is None else "main", is_classifier)


def _check_manifests(config: CommonConfig) -> None:
    for flag in ("model_name_or_path", "ref_model_name_or_path", "reward_model_name_or_path"):
        name = getattr(config, flag, None)
        for folder in (name, adapter_base(name)) if name is not None else ():
            if folder is not None:
                check_model_folder(f"--{flag}", Path(folder))


def _check_model(config: CommonConfig, what: str, name: str, revision: str, is_classifier: bool) -> None:
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        return  # which config.paths tells
    try:
        about = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=config.trust_remote_code)
    except Exception as error:  # whatever the many config classes raise, it is the named model that is at fault
        if not folder.is_dir():
            return  # an adapter of the hub, and what else loading will tell
        if "trust_remote_code" in str(error) and not config.trust_remote_code:
            raise UserError(
                f"{what}: it comes with code of its own; read that, and where you trust it give --trust_remote_code",
                PAGE,
            ) from error
        raise UserError(f"{what}: its config.json cannot be used: {first_line(error)}", PAGE) from error
    if is_classifier:
        check_classifier(what, about)
    else:
        check_language_model(what, about)
    changed = getattr(config, "model_init_kwargs", None) or getattr(about, "quantization_config", None)
    if folder.is_dir() and not changed:  # what changes the config, or holds weights in another form, loading tells
        model = _without_weights(config, what, about, is_classifier)
        is_new = is_classifier and not _is_sequence_classifier(about)
        check_shapes(what, model, shapes_of(what, folder), HEADS if is_new else ())


def check_vocabulary(config: CommonConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Compare the tokens with the embeddings that the model's config tells of. New special tokens, of a chat template
    or a later version, get new rows, which is said; words are part of what the model was trained on.

    Args:
        config: of the run.
        tokenizer: of the run.

    Raises:
        UserError: there are words without an embedding: the tokenizer is that of another model.
    """
    name = str(config.model_name_or_path)
    base = adapter_base(name)
    try:
        about = AutoConfig.from_pretrained(
            base or name,
            revision="main" if base else config.model_revision,
            trust_remote_code=config.trust_remote_code,
        )
    except Exception:  # of whatever kind; of folders it has been told, of the hub loading tells it
        return
    rows = getattr(about.get_text_config(), "vocab_size", None)
    if rows is None:
        return
    beyond = [(number, token) for token, number in tokenizer.get_vocab().items() if number >= rows]
    if not beyond:
        return
    special = {token.content for token in tokenizer.added_tokens_decoder.values()}
    words = sorted((number, token) for number, token in beyond if token not in special)
    if words or len(beyond) > _MOST_NEW_TOKENS or max(beyond)[0] >= rows + _MOST_NEW_TOKENS:
        shown = some([f"{token!r} ({number})" for number, token in words or sorted(beyond)])
        raise UserError(
            f"--model_name_or_path {name}: its config.json tells of {rows:,} embeddings (vocab_size), and its "
            f"tokenizer has tokens beyond: {shown}; they are not of the same model",
            PAGE,
        )
    if os.environ.get("RANK", "0") == "0":
        shown = some([token for _, token in sorted(beyond)])
        logger.warning("%s: tokens without an embedding, which get new, random ones: %s", name, shown)


def check_language_model(what: str, about: PreTrainedConfig) -> None:
    """Raise for a model of a family that has no causal language model.

    Args:
        what: the flag and its value.
        about: the model's config.
    """
    own_code = "AutoModelForCausalLM" in (getattr(about, "auto_map", None) or {})
    if type(about) not in AutoModelForCausalLM._model_mapping and not own_code:
        raise UserError(
            f"{what}: transformers has no causal language model of the type {about.model_type}; take one that writes "
            "text from left to right, such as Qwen/Qwen2-0.5B",
            PAGE,
        )


def check_classifier(what: str, about: PreTrainedConfig) -> None:
    """Raise for a model of a family that has no sequence classifier, and for a classifier with several labels.

    Args:
        what: the flag and its value.
        about: the model's config.
    """
    known = type(about) in AutoModelForSequenceClassification._model_mapping
    if not known and "AutoModelForSequenceClassification" not in (getattr(about, "auto_map", None) or {}):
        raise UserError(
            f"{what}: transformers has no sequence classifier for models of the type {about.model_type}; it has one "
            f"for {', '.join(FAMILIES)} and others"
        )
    if _is_sequence_classifier(about) and about.num_labels != 1:
        labels = ", ".join(str(label) for label in about.id2label.values())
        raise UserError(
            f"{what}: it is a classifier with {about.num_labels} labels ({labels}), and a reward model has one score; "
            "take a causal language model, or a classifier with num_labels 1"
        )


def _is_sequence_classifier(about: PreTrainedConfig) -> bool:
    return any("ForSequenceClassification" in one for one in about.architectures or ())


def _without_weights(config: CommonConfig, what: str, about: PreTrainedConfig, is_classifier: bool) -> PreTrainedModel:
    """The model with tensors that have shapes and no memory."""
    kind = AutoModelForSequenceClassification if is_classifier else AutoModelForCausalLM
    if is_classifier:
        about.num_labels = 1
    options = {"attn_implementation": config.attn_implementation} if config.attn_implementation else {}
    try:
        with torch.device("meta"):
            return kind.from_config(about, trust_remote_code=config.trust_remote_code, **options)
    except Exception as error:  # of whatever kind: a config with numbers that fit no model ends in any error there is
        flag = "--attn_implementation: " if "attention" in str(error).lower() else ""
        raise UserError(f"{flag}{what}: no model can be made of its config.json: {first_line(error)}", PAGE) from error


def check_shapes(what: str, model: PreTrainedModel, shapes: Shapes, new: Iterable[str] = ()) -> None:
    """Compare the tensors of files with those of the model that they are for.

    transformers renames and joins the tensors of some families as it loads them. So a missing one is told where all
    of the files' names are the model's own; where some are not, loading tells it.

    Args:
        what: the flag and its value.
        model: without weights.
        shapes: of the files' tensors.
        new: the first words of names that may be missing.

    Raises:
        UserError: a tensor has another size, is missing, or belongs to a layer that the config does not count.
    """
    prefix = f"{model.base_model_prefix}."
    own = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    found, strange = dict[str, str](), list[str]()
    for name in shapes:
        match = next((one for one in (name, prefix + name, name.removeprefix(prefix)) if one in own), None)
        if match is None:
            strange.append(name)
        else:
            found[match] = name
    for match, name in found.items():
        kind, shape = shapes[name]
        if own[match].is_floating_point() and kind.startswith(("I", "U", "BOOL", "C")):
            raise UserError(f"{what}: {name} has the type {kind} in its files, in which no weight can be trained", PAGE)
        if own[match].numel() != torch.Size(shape).numel():
            raise UserError(
                f"{what}: {name} has the shape {list(shape)} in its files, and {list(own[match].shape)} by its "
                "config.json; they are not of the same model",
                PAGE,
            )
    patterns = without_numbers(own)
    ignored = [re.compile(pattern) for pattern in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]
    beyond = [name for name in strange if is_layer(name) and without_numbers([name, prefix + name]) & patterns]
    beyond = [name for name in beyond if not any(pattern.search(name) for pattern in ignored)]
    if beyond:
        raise UserError(
            f"{what}: its files hold {some(beyond)}, which its config.json has no layer for; they are not of the same "
            "model",
            PAGE,
        )
    if strange:
        return
    there = {id(own[match]) for match in found}
    persistent = set(model.state_dict()) & set(dict(model.named_parameters(remove_duplicate=False)))
    missing = [name for name in persistent if id(own[name]) not in there and name.split(".")[0] not in new]
    refuse_missing(what, missing)
