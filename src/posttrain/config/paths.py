"""Cheap checks of the paths in a config, before anything is imported or loaded."""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from posttrain.config.common import CommonConfig
from posttrain.config.fields import nearest
from posttrain.errors import UserError

DATA_SUFFIXES = {".jsonl", ".json", ".csv", ".parquet", ".txt", ".arrow", ".gz"}
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def check_paths(config: CommonConfig) -> None:
    """Check that what is named is there, and that what will be written can be.

    Args:
        config: Its model, data, template and output paths are looked at.

    Raises:
        UserError: A local model folder is incomplete, a file is missing, or a folder is not writable.
    """
    for name in ("model_name_or_path", "ref_model_name_or_path"):
        model = getattr(config, name, None)
        if model is not None:
            check_model(name, str(model))
    if config.use_peft and (Path(config.model_name_or_path or "").expanduser() / "adapter_config.json").is_file():
        raise adapter_on_adapter(str(config.model_name_or_path))
    for name, source in _data_paths(config):
        if _looks_local(source) or Path(source).suffix.lower() in DATA_SUFFIXES:
            _check_exists(name, source, "a file or folder of rows, or a hub id such as trl-lib/Capybara")
    template = config.chat_template_path
    if template is not None and (_looks_local(template) or template.endswith((".jinja", ".jinja2"))):
        _check_exists("chat_template_path", template, "a .jinja file, or a folder or hub id of a tokenizer")
    if isinstance(config.resume_from_checkpoint, str):
        _check_exists("resume_from_checkpoint", config.resume_from_checkpoint, "a checkpoint folder")
    if config.resume_from_checkpoint is True and config.work_dir is None:
        folder = Path(config.output_dir).expanduser()
        if not any(folder.glob("checkpoint-*")):
            raise UserError(f"resume_from_checkpoint: {folder} holds no checkpoint; leave it out to start anew")
    for name in ("output_dir", "work_dir", "cache_dir"):
        if getattr(config, name) is not None:
            _check_writable(name, Path(getattr(config, name)).expanduser())
    for name in ("metrics_file", "plots_file"):
        if getattr(config, name) is not None:
            file = Path(getattr(config, name)).expanduser()
            if file.is_dir():
                raise UserError(f"{name}: {file} is a folder; name a file in it")
            _check_writable(name, file.parent)


def adapter_on_adapter(name: str) -> UserError:
    """What is wrong with `use_peft` where the model is an adapter."""
    return UserError(
        f"model_name_or_path: {name} is an adapter, which is merged into its base to train; one that use_peft trains "
        "would adapt a model that is nowhere on disk; leave use_peft out, or merge it with peft's merge_and_unload and "
        "save the result"
    )


def _data_paths(config: CommonConfig) -> Iterator[tuple[str, str]]:
    if config.dataset_name is not None:
        yield "dataset_name", config.dataset_name
    for i, source in enumerate(config.datasets):
        yield f"datasets[{i}].path", source.path


def _looks_local(text: str) -> bool:
    """Whether a name can only be a path: a hub id has one slash at most and begins with a letter or digit."""
    return text.startswith((".", "/", "~")) or text.count("/") > 1 or text.endswith("/")


def _check_exists(name: str, text: str, wanted: str) -> None:
    path = Path(text).expanduser()
    if path.exists():
        return
    neighbours = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = nearest(path.name, neighbours)
    advice = f"did you mean {path.parent / near}?" if near else f"wanted {wanted}"
    raise UserError(f"{name}: {text} does not exist; {advice}")


def adapter_base(folder: str) -> str | None:
    """The model that an adapter was trained on, by its own file; None where the folder holds no adapter, or a file that
    cannot be read, which loading it will tell.

    Args:
        folder: as the user gave it.
    """
    try:
        about = json.loads((Path(folder).expanduser() / "adapter_config.json").read_text(encoding="utf-8"))
        return about["base_model_name_or_path"] or None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_score_head(name: str, text: str) -> None:
    """Check that a model folder may hold a reward model: that of a language model has no head that scores.

    Args:
        name: of the flag, for the message.
        text: a folder, or a hub id, which is not looked at.

    Raises:
        UserError: the folder's config names language models alone.
    """
    file = Path(text).expanduser() / "config.json"
    try:
        kinds = json.loads(file.read_text(encoding="utf-8")).get("architectures") or []
    except (OSError, ValueError, AttributeError):
        return  # a hub id, an adapter, or a broken file, which loading tells
    if kinds and all(str(kind).endswith(("ForCausalLM", "LMHeadModel")) for kind in kinds):
        raise no_score_head(f"--{name} {text}")


def no_score_head(what: str) -> UserError:
    """The message about a model that was to give scores.

    Args:
        what: the flag and the model.
    """
    return UserError(
        f"{what}: it has no score head, so its scores would be random; `posttrain reward` trains one",
        "reward.md#a-first-run",
    )


def check_model(name: str, text: str) -> None:
    """Check that what is named as a model is a folder with a model in it, or may be a hub id.

    Args:
        name: of the flag, for the message.
        text: as the user gave it.

    Raises:
        UserError: it is a file, a folder without a model, a path that does not exist, or an adapter to one.
    """
    path = Path(text).expanduser()
    if path.is_file():
        raise UserError(f"{name}: {text} is a file; name the folder that holds the model")
    if not path.exists():
        if _looks_local(text):
            _check_exists(name, text, "a model folder, or a hub id such as Qwen/Qwen2-0.5B")
        return
    if not ((path / "config.json").is_file() or (path / "adapter_config.json").is_file()):
        raise UserError(
            f"{name}: {text} has no config.json, so it is no model folder; name one saved by save_pretrained",
            "troubleshooting.md#model-loading",
        )
    if not any(next(path.glob(pattern), None) for pattern in (*WEIGHTS, "adapter_model.bin")):
        raise UserError(
            f"{name}: {text} holds no weights (*.safetensors or pytorch_model.bin); save or copy them there",
            "troubleshooting.md#model-loading",
        )
    base = adapter_base(text)
    if base is not None and _looks_local(base) and not Path(base).expanduser().exists():
        raise UserError(
            f"{name}: {text} is an adapter, and its base {base} (base_model_name_or_path in its adapter_config.json) "
            "is no folder here; write there where it is",
            "troubleshooting.md#model-loading",
        )


def _check_writable(name: str, folder: Path) -> None:
    """Write a file that vanishes at once into the nearest folder that exists: permission bits alone do not tell."""
    existing = folder
    while not (existing.exists() or existing.is_symlink()) and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"{name}: {existing} is not a folder, so {folder} cannot be written; name another place")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UserError(f"{name}: {existing} is not writable ({reason}); name another place") from None
