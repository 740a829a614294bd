"""Cheap checks of the paths in a config, before anything is imported or loaded."""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from posttrain.config.common import CommonConfig
from posttrain.config.fields import nearest
from posttrain.config.model_files import (
    PAGE,
    check_adapter_files,
    check_config_file,
    check_generation_file,
    read_object,
    shapes_of,
)
from posttrain.errors import UserError
from posttrain.hub import hide_token

DATA_SUFFIXES = {".jsonl", ".json", ".csv", ".parquet", ".txt", ".arrow", ".gz"}
# Of model_init_kwargs: the files of the model have other names.
OTHER_FILES = {"subfolder", "variant", "gguf_file", "transformers_weights"}
_TO_EXPAND = re.compile(r"\$\{.*?\}|\$[A-Za-z_]\w*|\{\{.*?\}\}")
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt", "*.pth", "*.ckpt")


def check_paths(config: CommonConfig) -> None:
    """Check that what is named is there, and that what will be written can be.

    Args:
        config: Its model, data, template and output paths are looked at.

    Raises:
        UserError: A local model folder is incomplete, a file is missing, or a folder is not writable.
    """
    for name in ("model_name_or_path", "ref_model_name_or_path"):
        model = getattr(config, name, None)
        if model is not None and not OTHER_FILES & set(config.model_init_kwargs or {}):
            with _told_of(name):
                check_model(name, str(model))
    if config.use_peft and (Path(config.model_name_or_path or "").expanduser() / "adapter_config.json").is_file():
        raise adapter_on_adapter(str(config.model_name_or_path))
    for name, source in _data_paths(config):
        if _looks_local(source) or Path(source).suffix.lower() in DATA_SUFFIXES:
            with _told_of(name):
                _check_exists(name, source, "a file or folder of rows, or a hub id such as trl-lib/Capybara")
    template = config.chat_template_path
    if template is not None and (_looks_local(template) or template.endswith((".jinja", ".jinja2"))):
        with _told_of("chat_template_path"):
            _check_exists("chat_template_path", template, "a .jinja file, or a folder or hub id of a tokenizer")
    if isinstance(config.resume_from_checkpoint, str):
        with _told_of("resume_from_checkpoint"):
            _check_exists("resume_from_checkpoint", config.resume_from_checkpoint, "a checkpoint folder")
            if Path(config.resume_from_checkpoint).is_file():
                raise UserError(
                    f"resume_from_checkpoint: {config.resume_from_checkpoint} is a file; name the folder it is in"
                )
    for name in ("deepspeed", "fsdp_config", "accelerator_config"):
        file = getattr(config, name)
        if isinstance(file, str) and not file.lstrip().startswith("{"):
            with _told_of(name):
                _check_exists(name, file, "JSON, or a file of it")
                read_object(f"--{name} {file}", Path(file))
    _check_written(config)


def _check_written(config: CommonConfig) -> None:
    """Check the places that the run writes to: that it can, and that nothing it reads is there."""
    if config.resume_from_checkpoint is True and config.work_dir is None:
        folder = Path(config.output_dir).expanduser()
        if not any(folder.glob("checkpoint-*")):
            raise UserError(f"resume_from_checkpoint: {folder} holds no checkpoint; leave it out to start anew")
    for name in ("output_dir", "work_dir", "cache_dir"):
        if getattr(config, name) is not None:
            with _told_of(name):
                _check_folder(name, Path(getattr(config, name)), config)
    read = [file for file in (source for _, source in _data_paths(config)) if Path(file).is_file()]
    written: dict[str, str] = {}
    for name in ("metrics_file", "plots_file", "provenance_file", "record_steps"):
        if getattr(config, name) is not None:
            with _told_of(name):
                file = Path(getattr(config, name))
                _check_words(name, file)
                if file.is_dir():
                    raise UserError(f"{name}: {file} is a folder; name a file in it")
                if any(file.exists() and file.samefile(source) for source in read):
                    raise UserError(f"{name}: {file} holds the rows to train on; name another file")
                _check_writable(name, file.parent)
                read.append(str(file))
                if str(file) in written:
                    raise UserError(f"{name}: {file} is the {written[str(file)]} too; name another file")
                written[str(file)] = name


def _check_folder(name: str, folder: Path, config: CommonConfig) -> None:
    _check_words(name, folder)
    if folder.is_symlink() and not folder.exists():
        raise UserError(
            f"{name}: {folder} is a dangling link, to {os.readlink(folder)}; make that folder, or remove it"
        )
    if folder.exists() and folder.resolve() == Path(folder.anchor or "/").resolve():
        raise UserError(f"{name}: {folder} is the root of the file system; name a folder in it")
    for read in ("model_name_or_path", "ref_model_name_or_path", "reward_model_name_or_path"):
        model = getattr(config, read, None)
        if model is not None and folder.is_dir() and Path(model).is_dir() and folder.samefile(model):
            raise UserError(f"{name}: {folder} is the folder of the model to read ({read}); name another place")
    _check_writable(name, folder)


def _check_words(name: str, path: Path) -> None:
    found = _TO_EXPAND.search(str(path))
    if found:
        raise UserError(f"{name}: {path} holds {found[0]}, which nothing expands here; write what it stands for")


@contextlib.contextmanager
def _told_of(name: str) -> Iterator[None]:
    """What the system says of a path that no path can be, as an error about the flag."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise UserError(f"{name}: no path can be used that reads so: {reason}; name another place") from None


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
    path, text = Path(text).expanduser(), hide_token(text)
    if path.exists():
        return
    if path.is_symlink():
        raise UserError(f"{name}: {text} is a dangling link, to {os.readlink(path)}; {wanted} is wanted")
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
            PAGE,
        )
    if not any(next(path.glob(pattern), None) for pattern in WEIGHTS):
        raise UserError(f"{name}: {text} holds no weights (*.safetensors); save or copy them there", PAGE)
    what = f"--{name} {text}"
    if not (path / "adapter_config.json").is_file():
        check_config_file(what, path)
        check_generation_file(what, path)
        shapes_of(what, path)
        return
    base = check_adapter_files(what, path)
    if base is None:
        raise UserError(f"{what}: its adapter_config.json does not say which model it adapts", PAGE)
    if Path(base).is_dir():
        if (Path(base) / "adapter_config.json").is_file():
            raise UserError(
                f"{what} is an adapter, and its base {base} is one too; merge that with peft's merge_and_unload, save "
                "the result, and write it into adapter_config.json as base_model_name_or_path",
                PAGE,
            )
        check_model(name, base)
    if _looks_local(base) and not Path(base).expanduser().exists():
        raise UserError(
            f"{name}: {text} is an adapter, and its base {base} (base_model_name_or_path in its adapter_config.json) "
            "is no folder here; write there where it is",
            PAGE,
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
