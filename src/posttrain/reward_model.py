"""Reward models: transformers' sequence classifiers with one label, from whatever a reward model can start from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from posttrain.config.model_files import shapes_of
from posttrain.config.paths import adapter_on_adapter, no_score_head
from posttrain.errors import UserError, is_out_of_memory
from posttrain.loaded_model import check_loaded, check_loaded_adapter, settle_config
from posttrain.model_check import HEADS, check_classifier
from posttrain.models import (
    LOADING_ERRORS,
    adapter_folder,
    loading_error,
    loading_options,
    peft_warnings,
    without_report,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from posttrain.config import CommonConfig

# Arguments of from_pretrained that a config may hold too.
_OF_LOADING = {"dtype", "quantization_config"}


def load_reward_model(config: CommonConfig, path: str) -> PreTrainedModel:
    """A classifier with one label to be trained: from a causal language model, with a new score head; from a
    classifier; or from an adapter of either, merged into its base.

    Args:
        config: of the run.
        path: folder or hub id.

    Raises:
        UserError: it cannot be found, read or understood, or is no such model.
    """
    if config.use_peft and adapter_folder(path, config.model_revision) is not None:
        raise adapter_on_adapter(path)
    options = loading_options(config)
    if "quantization_config" in options:
        options["quantization_config"].llm_int8_skip_modules = [*HEADS]  # they are trained, so they stay numbers
    return load_sequence_classifier(path, may_have_new_head=True, name="--model_name_or_path", **options)


def load_sequence_classifier(
    path: str,
    dtype: Any = "auto",
    revision: str = "main",
    trust_remote_code: bool = False,
    may_have_new_head: bool = False,
    name: str = "--reward_model_name_or_path",
    **options: Any,
) -> PreTrainedModel:
    """A classifier with one label, an adapter merged into its base.

    Args:
        path: folder or hub id of a model, or folder of an adapter.
        dtype: of the weights: a torch.dtype, or "auto" for that of the file.
        revision: of a hub model.
        trust_remote_code: run code that comes with it.
        may_have_new_head: whether the score head may be a new, random one, where what is loaded has none.
        name: of the flag, for messages.
        **options: further ones of from_pretrained.

    Raises:
        UserError: it cannot be found, read or understood, has more than one label, or has no score head.
    """
    hub = {"revision": revision, "trust_remote_code": trust_remote_code, "use_safetensors": True}
    try:
        adapter = adapter_folder(path, revision)
        if adapter is not None:
            model, has_head = _load_adapter(adapter, name, options | hub | {"dtype": dtype})
        else:
            model, has_head = _load_classifier(path, name, options | hub | {"dtype": dtype})
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error) or not (isinstance(error, LOADING_ERRORS) or options.keys() - hub):
            raise  # of options, which are the user's, come errors of any kind
        raise loading_error(error, f"{name} {path}") from error
    if not has_head and not may_have_new_head:
        raise no_score_head(f"{name} {path}")
    return model


def _load_classifier(path: str, name: str, options: dict[str, Any]) -> tuple[PreTrainedModel, bool]:
    """The model, and whether its head was among the weights."""
    config = AutoConfig.from_pretrained(
        path, revision=options["revision"], trust_remote_code=options["trust_remote_code"]
    )
    is_classifier = any("ForSequenceClassification" in one for one in config.architectures or ())
    check_classifier(f"{name} {path}", config)
    config.num_labels = 1
    # from_pretrained changes a config that it reads itself; with one that it is given, these would be the model's.
    changes = {key: options[key] for key in options.keys() & config.to_dict().keys() - _OF_LOADING}
    config.update(changes)
    rest = {key: value for key, value in options.items() if key not in changes}
    with without_report():
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path, config=config, output_loading_info=True, ignore_mismatched_sizes=True, **rest
        )
    check_loaded(f"{name} {path}", model, info, new=() if is_classifier else HEADS, changed=bool(changes))
    if changes:
        settle_config(f"{name} {path}", model)
    return model, not any(key.split(".")[0] in HEADS for key in info["missing_keys"])


def _load_adapter(path: str, name: str, options: dict[str, Any]) -> tuple[PreTrainedModel, bool]:
    """The base model with the adapter merged into it, and whether either of them brought a head."""
    from peft import PeftConfig, PeftModel

    shapes = shapes_of(f"{name} {path}", Path(path), "adapter_model")
    adapter = PeftConfig.from_pretrained(path)
    if adapter.base_model_name_or_path is None:
        raise UserError(f"{name} {path}: the adapter does not say which model it adapts")
    model, base_has_head = _load_classifier(
        adapter.base_model_name_or_path, name, options | {"revision": adapter.revision or "main"}
    )
    brings_head = any(head in key.split(".") for key in shapes for head in HEADS)
    if not brings_head:
        adapter.task_type = None  # for peft, an adapter of a classifier always has a head
    if (Path(path) / "tokenizer_config.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=options["trust_remote_code"])
        if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(len(tokenizer))
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    with peft_warnings():
        adapted = PeftModel.from_pretrained(model, path, config=adapter)
        check_loaded_adapter(f"{name} {path}", adapted, shapes)
        merged = adapted.merge_and_unload()
    return merged.requires_grad_(True), base_has_head or brings_head  # peft had frozen the base


def set_padding_token(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Makes sure that there is a padding token: transformers' classifiers find the end of a text by it, and read the
    score there. Without one, the token for unknown ones, which ends no text, takes its place.

    Raises:
        UserError: there is neither.
    """
    if tokenizer.pad_token_id is not None:
        return
    if tokenizer.unk_token_id in (None, tokenizer.eos_token_id):
        special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        raise UserError(
            f"{path}: the tokenizer has no padding token, and a classifier of transformers finds the end of a text by "
            "it; name one that no text ends with, and that is not the EOS token, with --pad_token; its special tokens "
            f"are {', '.join(special[:8])}",
            "troubleshooting.md#model-loading",
        )
    tokenizer.pad_token = tokenizer.unk_token
