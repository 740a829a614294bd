"""Hashes of the files that a model consists of, as far as it is read: what it can be known by again."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from posttrain.checkpoints import MANIFEST, PROVENANCE, sha256_of
from posttrain.config.paths import adapter_base
from posttrain.hub import is_on_hub
from posttrain.runs import digest_of

# Of a folder without a manifest: what no run reads, since weights are taken from safetensors alone.
_NOT_READ = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5", ".msgpack", ".md")
_NOT_OF_A_MODEL = {MANIFEST, PROVENANCE, "run.json", "training_args.bin"}
_BLOB = re.compile(r"[0-9a-f]{64}")  # the hub's cache names a large file by its sha256
Plain = dict[str, Any]


def base_model(name: str, revision: str | None = None, options: Mapping[str, Any] | None = None) -> Plain:
    """The files of a model that is read, and of the model that an adapter is for.

    Args:
        name: folder or hub id.
        revision: of a hub model.
        options: of from_pretrained; `subfolder` counts.
    """
    folder = Path(name).expanduser()
    about: Plain = {"name": name}
    if is_on_hub(name):
        snapshot = _snapshot(name, revision)
        commit = None if snapshot is None else snapshot.name
        about |= {"revision": revision or "main", "commit": commit}
        if snapshot is None:
            return about | {"files": {}}
        folder = snapshot
    folder /= str((options or {}).get("subfolder") or "")
    about |= {"files": model_files(folder)}
    base = adapter_base(str(folder)) if (folder / "adapter_config.json").is_file() else None
    return about | ({"base": base_model(base)} if base else {})


def model_files(folder: Path) -> dict[str, Plain]:
    """Sizes and hashes of the files of a model, by name. A manifest knows them: it was checked before the model was
    loaded.

    Args:
        folder: of the model; checkpoints and other folders in it are left out.
    """
    try:
        known: dict[str, Plain] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return known
    except (OSError, ValueError, LookupError, TypeError):
        pass
    if not folder.is_dir():
        return {}
    files = [
        file
        for file in sorted(folder.iterdir())
        if file.is_file() and not file.name.startswith(".") and file.suffix not in _NOT_READ
    ]
    return file_hashes((file for file in files if file.name not in _NOT_OF_A_MODEL), by_name=True)


def file_hashes(files: Iterable[Path], by_name: bool = False) -> dict[str, Plain]:
    """Sizes and hashes of files, by path.

    Args:
        files: that are there.
        by_name: by the name alone.
    """
    files = list(files)
    named = {file: file.resolve().name for file in files if _BLOB.fullmatch(file.resolve().name)}
    others = [file for file in files if file not in named]
    hashes = named | dict(zip(others, sha256_of(others), strict=True))
    return {
        file.name if by_name else str(file): {"sha256": hashes[file], "size": file.stat().st_size} for file in files
    }


def chat_template_of(folder: Path) -> str | None:
    """sha256 of the chat template in a model's folder; None where it has none."""
    if (folder / "chat_template.jinja").is_file():
        return digest_of_template((folder / "chat_template.jinja").read_text(encoding="utf-8"))
    if (folder / "tokenizer_config.json").is_file():
        about = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        return digest_of_template(about.get("chat_template"))
    return None


def digest_of_template(template: Any) -> str | None:
    """sha256 of its text; of several, by their names, one over all; None where there is none.

    Args:
        template: as tokenizers have it.
    """
    if isinstance(template, str):
        return hashlib.sha256(template.encode()).hexdigest()
    return None if template is None else digest_of(template)


def _snapshot(name: str, revision: str | None) -> Path | None:
    """The folder in the hub's cache that a model was read from."""
    from huggingface_hub import try_to_load_from_cache

    for file in ("config.json", "adapter_config.json"):
        found = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(found, str):
            return Path(found).parent
    return None
