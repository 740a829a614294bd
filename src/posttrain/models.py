"""Loading and saving of policies."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging
from transformers.utils.peft_utils import find_adapter_config_file

from posttrain.config.model_files import PAGE, shapes_of
from posttrain.config.paths import adapter_on_adapter
from posttrain.errors import UserError, is_out_of_memory
from posttrain.hub import explain, is_on_hub
from posttrain.loaded_model import check_loaded, check_loaded_adapter, settle_config
from posttrain.machine import num_cores
from posttrain.quantisation import is_quantised, quantisation_options, quantised_dtype
from posttrain.wording import first_line

if TYPE_CHECKING:
    from posttrain.config import CommonConfig


# What transformers and the libraries below it raise about a model that is not what it seems.
LOADING_ERRORS = (OSError, ValueError, KeyError, ImportError, TypeError, AttributeError, RuntimeError, SafetensorError)
POLICY = "--model_name_or_path"


def load_causal_model(
    config: CommonConfig, path: str, flag: str = POLICY, revision: str | None = None
) -> PreTrainedModel:
    """A causal language model from a folder or the hub, an adapter merged into its base.

    Args:
        config: of the run.
        path: folder or hub id.
        flag: that names it, for messages.
        revision: of a hub model; None: the config's.

    Raises:
        UserError: it cannot be found, read or understood.
    """
    options = loading_options(config)
    options["revision"] = config.model_revision if revision is None else revision
    try:
        adapter = adapter_folder(path, options["revision"])
        if adapter is not None:
            if config.use_peft and flag == POLICY:
                raise adapter_on_adapter(path)
            return _load_adapter(adapter, f"{flag} {path}", options)
        return _load_model(path, f"{flag} {path}", options, changed=bool(config.model_init_kwargs))
    except UserError:
        raise
    except Exception as error:
        # Of model_init_kwargs come errors of any kind, from wherever in the model's code they lead.
        if is_out_of_memory(error) or not (isinstance(error, LOADING_ERRORS) or config.model_init_kwargs):
            raise
        if not isinstance(error, LOADING_ERRORS):
            raise UserError(
                f"{flag} {path}: no model can be made with these --model_init_kwargs: {first_line(error)}", PAGE
            ) from error
        raise loading_error(error, f"{flag} {path}") from error


def _load_model(path: str, what: str, options: dict[str, Any], changed: bool = False) -> PreTrainedModel:
    with without_report():
        model, info = AutoModelForCausalLM.from_pretrained(
            path, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    check_loaded(what, model, info, changed=changed)
    if changed:
        settle_config(what, model)
    return model


def _load_adapter(folder: str, what: str, options: dict[str, Any]) -> PreTrainedModel:
    """The base model with the adapter merged into it."""
    from peft import PeftConfig, PeftModel

    shapes = shapes_of(what, Path(folder), "adapter_model")
    about = PeftConfig.from_pretrained(folder)
    if about.task_type not in (None, "CAUSAL_LM"):
        raise UserError(f"{what}: it is an adapter of the kind {about.task_type}, not of a language model", PAGE)
    base = _load_model(about.base_model_name_or_path, what, options | {"revision": about.revision or "main"})
    if (Path(folder) / "tokenizer_config.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=options["trust_remote_code"])
        if len(tokenizer) > base.get_input_embeddings().weight.shape[0]:
            base.resize_token_embeddings(len(tokenizer))
    with peft_warnings():
        model = PeftModel.from_pretrained(base, folder)
        check_loaded_adapter(what, model, shapes)
        merged = model.merge_and_unload()
    return merged.requires_grad_(True)  # peft had frozen the base


def loading_error(error: Exception, what: str) -> UserError:
    """What the user can do about a model that does not load.

    Args:
        error: of transformers or a library below it.
        what: the flag and its value.
    """
    if isinstance(error, SafetensorError):
        return UserError(
            f"{what}: a file of its weights is not whole ({first_line(error)}); copy or download it again", PAGE
        )
    if "use_safetensors" in str(error):
        return UserError(
            f"{what}: its weights are pickled, and a pickle can run any code when it is read; if you trust it, load it "
            "with transformers, save it with save_pretrained, and name that folder",
            PAGE,
        )
    return explain(error, what) or UserError(f"{what}: the model cannot be loaded: {first_line(error)}", PAGE)


def loading_options(config: CommonConfig) -> dict[str, Any]:
    """The flags that say how weights are loaded, as keyword arguments of from_pretrained."""
    options: dict[str, Any] = dict(getattr(config, "model_init_kwargs", None) or {})
    quantised = is_quantised(config)
    options.setdefault("dtype", (quantised_dtype(config) if quantised else None) or _dtype(config.dtype))
    options.update(revision=config.model_revision, trust_remote_code=config.trust_remote_code)
    options["use_safetensors"] = True  # a pickle can run any code when it is read
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")  # nor is somebody on the hub asked to convert it
    if config.attn_implementation:
        options["attn_implementation"] = config.attn_implementation
    return quantisation_options(config, options["dtype"]) | options if quantised else options


def adapter_folder(path: str, revision: str = "main") -> str | None:
    """The folder of an adapter, for one of the hub where it has been downloaded to; None for what is a model.

    Raises:
        OSError: the hub does not have it, or not for this user.
    """
    if Path(path).exists():
        return path if (Path(path) / "adapter_config.json").is_file() else None
    if not is_on_hub(path) or find_adapter_config_file(path, revision=revision) is None:
        return None
    return snapshot_download(path, revision=revision, ignore_patterns=["*checkpoint*", "runs/*"])


@contextlib.contextmanager
def peft_warnings() -> Iterator[None]:
    """Without the warning that peft sets off by asking a newer transformers for something by its old name, and the one
    about what `check_loaded_adapter` refuses."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)  # an error of ours
        yield


@contextlib.contextmanager
def without_report() -> Iterator[None]:
    """Without transformers' table of weights that are too few and too many, which is told in a line, or an error."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _dtype(name: str | None) -> Any:
    return "auto" if name in (None, "auto") else getattr(torch, str(name))


def match_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Gives the model the tokenizer's special tokens, and rows for tokens that it has no embedding for. What else ends
    its completions, by its own settings for generation, still does."""
    rows = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))  # numbers may have holes
    if rows > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(rows)
    model.config.pad_token_id, model.config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        own = generation.eos_token_id if isinstance(generation.eos_token_id, list) else []
        more = [token for token in own if token != tokenizer.eos_token_id]
        generation.pad_token_id = tokenizer.pad_token_id
        generation.eos_token_id = [tokenizer.eos_token_id, *more] if more else tokenizer.eos_token_id


def keep_bool_buffers_out_of_ddp(model: torch.nn.Module) -> None:
    """For `--ignore_bias_buffers`: some old models hold boolean masks as buffers, which DDP cannot broadcast."""
    names = [name for name, buffer in model.named_buffers() if buffer.dtype == torch.bool]
    model._ddp_params_and_buffers_to_ignore = names  # type: ignore[assignment]


def disable_dropout(model: torch.nn.Module) -> None:
    """Sets the probability of every dropout module, and of attention dropout, to zero."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]


def checkpoint_activations(model: PreTrainedModel, on: bool) -> None:
    """Switches recomputation of activations on or off, by whichever name the installed transformers has for it."""
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if on:
        getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False})
    else:
        getattr(model, f"{name}_checkpointing_disable")()


def digest_of_model(model: PreTrainedModel) -> str:
    """sha256 over the names, shapes, types and bytes of all tensors of a model."""
    tensors = sorted(model.state_dict().items())
    with ThreadPoolExecutor(min(8, num_cores())) as threads:  # hashlib lets others run meanwhile
        digests = threads.map(_digest_of_tensor, (tensor for _, tensor in tensors))
        lines = [f"{name} {digest}\n" for (name, _), digest in zip(tensors, digests, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _digest_of_tensor(tensor: torch.Tensor) -> str:
    content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    return f"{tuple(tensor.shape)} {tensor.dtype} {hashlib.sha256(content).hexdigest()}"


def follow_umask(folder: Path) -> None:
    """Gives the files under a folder the permissions that any new file gets here: safetensors writes its own for the
    owner alone.

    Args:
        folder: just written; links in it are left alone.
    """
    probe = folder / ".permissions"  # a new file knows more than the umask: what the folder itself decides, too
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink() and stat.S_IMODE(file.stat().st_mode) != mode:
            file.chmod(mode)
