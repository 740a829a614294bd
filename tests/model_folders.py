"""Ways to change a model folder: its JSON, its weights, and folders of adapters and classifiers made of it."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file, save_file

Weights = dict[str, np.ndarray]
META = {"format": "pt"}


def edit_json(file: Path, **changes: Any) -> None:
    """Sets keys; those with None as their value go."""
    about = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(json.dumps({key: value for key, value in about.items() if value is not None}), encoding="utf-8")


def edit_config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", **changes)


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    """A file with other content."""
    return lambda folder: void((folder / name).write_bytes(content.encode() if isinstance(content, str) else content))


def remove(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def void(_: object) -> None:
    pass


def edit_weights(change: Callable[[Weights], object], name: str = "model.safetensors") -> Callable[[Path], None]:
    """The tensors of a file, changed in place by a function."""

    def edit(folder: Path) -> None:
        weights = {key: value.copy() for key, value in load_file(folder / name).items()}
        change(weights)
        save_file(weights, folder / name, metadata=META)

    return edit


def edit_header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """The header of the weights' file, changed by hand."""

    def edit(folder: Path) -> None:
        content = (folder / "model.safetensors").read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])

    return edit


def shards(change: Callable[[Path, dict[str, str]], object] = lambda folder, places: None) -> Callable[[Path], None]:
    """The weights in two files with an index; then a function of the folder and the index's places."""

    def split(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names, places = sorted(weights), dict[str, str]()
        for number, part in enumerate((names[::2], names[1::2]), 1):
            file = f"model-{number:05}-of-00002.safetensors"
            save_file({name: weights[name] for name in part}, folder / file, metadata=META)
            places |= dict.fromkeys(part, file)
        change(folder, places)
        index = {"metadata": {"total_size": 0}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return split


def as_adapter(change: Callable[[Path], object] = lambda folder: None, rank: int = 2) -> Callable[[Path], None]:
    """The model moved to `base` beside, and an adapter of it in its place; then a function of the adapter's folder."""

    def make(folder: Path) -> None:
        base = folder.with_name("base")
        shutil.copytree(folder, base)
        for name in ("config.json", "generation_config.json", "model.safetensors"):
            (folder / name).unlink()
        about = {"base_model_name_or_path": str(base), "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank}
        about |= {"lora_alpha": 4, "target_modules": ["q_proj"], "lora_dropout": 0.0}
        (folder / "adapter_config.json").write_text(json.dumps(about))
        weights = {}
        for layer in range(2):
            name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
            weights[f"{name}.lora_A.weight"] = np.full((rank, 32), 0.01, dtype=np.float32)
            weights[f"{name}.lora_B.weight"] = np.full((32, rank), 0.01, dtype=np.float32)
        save_file(weights, folder / "adapter_model.safetensors", metadata=META)
        change(folder)

    return make


def as_classifier(labels: int = 1, head: bool = True) -> Callable[[Path], None]:
    """A sequence classifier of the model."""

    def make(folder: Path) -> None:
        names = {str(i): f"LABEL_{i}" for i in range(labels)}
        edit_json(folder / "config.json", architectures=["Qwen2ForSequenceClassification"], id2label=names)
        edit_json(folder / "config.json", label2id={name: int(i) for i, name in names.items()})
        if head:
            edit_weights(lambda w: w.update({"score.weight": np.ones((labels, 32), np.float32)}))(folder)

    return make


def both(*changes: Callable[[Path], object]) -> Callable[[Path], None]:
    """One after the other."""

    def make(folder: Path) -> None:
        for change in changes:
            change(folder)

    return make


def edit_tokenizer(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """tokenizer.json, changed in place by a function."""

    def edit(folder: Path) -> None:
        about = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        change(about)
        (folder / "tokenizer.json").write_text(json.dumps(about), encoding="utf-8")

    return edit


def edit_settings(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "tokenizer_config.json", **changes)


class Case(NamedTuple):
    """A broken folder.

    Args:
        change: breaks a whole folder.
        said: in the message.
        flags: of the command line, besides the needed ones.
        method: of the command line.
        loads: whether it is known only once weights are read.
    """

    change: Callable[[Path], object]
    said: list[str]
    flags: tuple[str, ...] = ()
    method: str = "sft"
    loads: bool = False


def setting(name: str, value: float) -> Callable[[Path], None]:
    """One number of a tensor."""
    return edit_weights(lambda weights: weights[name].reshape(-1).__setitem__(7, value))


def without(name: str) -> Callable[[Path], None]:
    return edit_weights(lambda weights: weights.pop(name))


def of_shape(name: str, *shape: int) -> Callable[[Path], None]:
    return edit_weights(lambda weights: weights.update({name: np.ones(shape, np.float32)}))


def cut(name: str, count: int) -> Callable[[Path], None]:
    """A file that ends early."""

    def make(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) - count])

    return make


def replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Something else where the folder was."""

    def change(folder: Path) -> None:
        shutil.rmtree(folder)
        make(folder)

    return change


def linked_in_a_circle(folder: Path) -> None:
    other = folder.with_name("other")
    other.symlink_to(folder)
    folder.symlink_to(other)


def pickled(name: str) -> Callable[[Path], None]:
    """Weights that leave a file `was-read` when they are read by somebody who trusts them."""

    def make(folder: Path) -> None:
        class Trap:
            def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
                return os.system, (f"touch '{folder}/was-read'",)

        (folder / name).write_bytes(pickle.dumps(Trap()))

    return make


def adapter_of_adapter(folder: Path) -> None:
    as_adapter()(folder)
    other = folder.with_name("inner")
    shutil.copytree(folder, other)
    edit_json(folder / "adapter_config.json", base_model_name_or_path=str(other))


def manifest(folder: Path, size: int | None = None, sha256: str | None = None) -> None:
    file = folder / "model.safetensors"
    about = {"size": file.stat().st_size if size is None else size}
    about["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest() if sha256 is None else sha256
    (folder / "manifest.json").write_text(json.dumps({"files": {file.name: about}}))


def void_append(file: Path, more: bytes) -> None:
    file.write_bytes(file.read_bytes() + more)


def beside(folder: Path, change: Callable[[Path], object]) -> None:
    """A broken copy, the folder itself whole."""
    other = folder.with_name(folder.name + "2")
    shutil.copytree(folder, other)
    change(other)


def pickled_beside(folder: Path) -> None:
    beside(folder, both(as_classifier(), remove("model.safetensors"), pickled("pytorch_model.bin")))


def cut_beside(folder: Path) -> None:
    beside(folder, both(as_classifier(), cut("model.safetensors", 10)))
