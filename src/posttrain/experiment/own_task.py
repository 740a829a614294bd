# ruff: noqa: RUF009 (flag() returns a dataclass field)
"""The task of a recipe: sets of rows from files or the hub, and the base model, as files that DVC keeps.

What a later stage reads is copied here once, so that it is hashed, stored and shared with the experiment, and a data
set or model that changes or leaves the hub changes nothing.
"""

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.config import DatasetSource
from posttrain.config.fields import convert_mapping, flag, flags_of, label
from posttrain.config.paths import check_model
from posttrain.data.readers import Row
from posttrain.data.sources import Source
from posttrain.data.splits import open_mixture
from posttrain.embedded import task
from posttrain.errors import UserError
from posttrain.experiment.conversions import CONVERSIONS
from posttrain.hub import explain, is_on_hub

REQUIRED = dataclasses.MISSING
SPLITS = ("train", "validation", "test")
# A model's files on the hub; its other formats of weights (pickles among them), pictures and code stay there.
MODEL_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SECONDS_BEFORE_BAR = 3.0
_SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


@dataclass(kw_only=True)
class SetSettings:
    """One set of rows: `sft`, `preference` or `prompts`."""

    train: list[DatasetSource] = flag(REQUIRED, "What to train on, entries as of --datasets.")
    validation: list[DatasetSource] = flag(REQUIRED, "Held-out rows for the curves.")
    test: list[DatasetSource] = flag(REQUIRED, "Held-out rows for the stage `evaluate`.")
    convert: str = flag("as_they_are", "How rows become those of the method.", choices=CONVERSIONS)


@dataclass(kw_only=True)
class OwnSettings:
    """The section `prepare` of params.yaml with `task: own`."""

    task: str = flag(REQUIRED, "Where the rows come from.", choices=("own",))
    folder: str = flag(REQUIRED, "Where the rows go, a folder a set.")
    sft: dict[str, Any] = flag(REQUIRED, "Conversations to learn from.")
    preference: dict[str, Any] = flag(REQUIRED, "Pairs of a better and a worse answer.")
    prompts: dict[str, Any] = flag(REQUIRED, "Prompts to answer, with what the rewards need.")
    base_model: str | None = flag(REQUIRED, "Folder or hub id of the base model; none: a random one.")
    base_revision: str = flag("main", "Branch, tag or commit of a base model of the hub.")
    seed: int = flag(0, "Where the weights of a random one come from.", low=0)
    vocab_size: int = flag(4096, "Tokens of a random one at most.", low=259)
    hidden_size: int = flag(256, "Width of a random one.", low=8)
    intermediate_size: int = flag(768, "Width of its feed-forward layers.", low=8)
    num_hidden_layers: int = flag(4, "Layers of a random one.", low=1)
    num_attention_heads: int = flag(4, "Attention heads of a random one.", low=1)
    num_key_value_heads: int = flag(2, "Key-value heads of a random one.", low=1)


def read_own(section: dict[str, object], where: str) -> tuple[OwnSettings, dict[str, SetSettings]]:
    """Understand the section `prepare`.

    Args:
        section: of the params file, with `task: own`.
        where: file and section, for messages.

    Returns:
        the settings, and those of each set.

    Raises:
        UserError: a key is unknown, missing or wrong.
    """
    settings: OwnSettings = _settings(OwnSettings, section, where)
    sets = {name: _settings(SetSettings, getattr(settings, name), label(name, where)) for name in task.SETS}
    for name, each in sets.items():
        for split in SPLITS:
            if not getattr(each, split):
                raise UserError(f"{where}.{name}.{split} is empty; name at least one source, such as [{{path: FILE}}]")
    if settings.base_model is not None and not is_on_hub(settings.base_model):
        check_model(f"{where}.base_model", settings.base_model)
    return settings, sets


def _settings(cls: type, mapping: Any, where: str) -> Any:
    values = convert_mapping(cls, mapping, where)
    for name, field in flags_of(cls).items():
        if name not in values and field.default is REQUIRED and field.default_factory is REQUIRED:
            raise UserError(f"{label(name, where)} is missing ({field.metadata['help']})")
    return cls(**values)


def write_sets(sets: dict[str, SetSettings], where: str, root: Path) -> dict[str, int]:
    """Write `<set>/<split>.jsonl` under a folder; each set's folder is replaced as a whole.

    Args:
        sets: by name.
        where: file and section, for messages.
        root: the folder.

    Returns:
        rows by "num_rows/<set>/<split>".

    Raises:
        UserError: a source is not there, or a row does not fit the conversion.
    """
    opened = {
        (name, split): open_mixture(getattr(settings, split), called=f"{where}.{name}.{split}")
        for name, settings in sets.items()
        for split in SPLITS
    }
    counts = {}
    for name, settings in sets.items():
        folder = task.new_folder(root / name)
        for split in SPLITS:
            with open(folder / f"{split}.jsonl", "w", encoding="utf-8", newline="\n") as file:
                number = 0
                for columns in _converted(opened[name, split], settings.convert, f"{name}/{split}"):
                    file.write(json.dumps(columns, ensure_ascii=False) + "\n")
                    number += 1
            if not number:
                raise UserError(f"{where}.{name}.{split}: no row is left of {opened[name, split].name}")
            counts[f"num_rows/{name}/{split}"] = number
        task.put_in_place(folder, root / name)
    return counts


def _converted(source: Source, conversion: str, title: str) -> Iterator[dict[str, Any]]:
    from tqdm import tqdm

    convert = CONVERSIONS[conversion]
    for row in tqdm(source.rows(), desc=title, unit=" rows", delay=_SECONDS_BEFORE_BAR, disable=None):
        try:
            yield from convert(row.columns)
        except (KeyError, TypeError, AttributeError) as error:
            raise _unfit(row, conversion, error) from error


def _unfit(row: Row, conversion: str, error: Exception) -> UserError:
    lacks = f"it has no column {error}" if isinstance(error, KeyError) else str(error)
    return UserError(
        f"{row.place}: the conversion {conversion} cannot read this row: {lacks}; it has {', '.join(row.columns)}"
    )


def write_sources(settings: OwnSettings, sets: dict[str, SetSettings], path: Path) -> None:
    """Write where rows and model come from, names of the hub with the commit that was read.

    Args:
        settings: of the section.
        sets: of each set.
        path: the file.

    Raises:
        UserError: the hub does not know a name or revision.
    """
    about: dict[str, Any] = {"task": "own"}
    for name, each in sets.items():
        about[name] = {"convert": each.convert}
        for split in SPLITS:
            about[name][split] = [
                {"path": entry.path, "split": entry.split}
                | ({"commit": commit_of(entry.path, "dataset", entry.revision)} if is_on_hub(entry.path) else {})
                for entry in getattr(each, split)
            ]
    if settings.base_model is not None:
        about["base_model"] = {"path": settings.base_model}
        if is_on_hub(settings.base_model):
            about["base_model"]["commit"] = commit_of(settings.base_model, "model", settings.base_revision)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def commit_of(name: str, kind: str, revision: str | None) -> str:
    """The commit that a branch or tag of the hub stands for now; a commit stands for itself.

    Args:
        name: of the repository.
        kind: "model" or "dataset".
        revision: None is main.

    Raises:
        UserError: there is none, or the hub cannot be reached.
    """
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi

    try:
        return str(HfApi().repo_info(name, repo_type=kind, revision=revision).sha)
    except Exception as error:
        raise explain(error, f"{name} ({revision or 'main'})") or error from error


def write_base(settings: OwnSettings, data: Path, path: Path) -> int:
    """Put the base model into its folder, which is replaced as a whole.

    Args:
        settings: of the section.
        data: the folder of the sets, whose conversations a random model's tokenizer is trained on.
        path: of the model.

    Returns:
        the number of its parameters.

    Raises:
        UserError: the hub does not know it, or cannot be reached.
    """
    if settings.base_model is None:
        sizes = {name: getattr(settings, name) for name in _SHAPE}
        return task.write_base_model(_texts(data / "sft/train.jsonl"), settings.vocab_size, sizes, settings.seed, path)
    folder = task.new_folder(path)
    if is_on_hub(settings.base_model):
        _download(settings.base_model, settings.base_revision, folder)
        check_model(f"base_model {settings.base_model}", str(folder))
    else:
        for pattern in MODEL_FILES:
            for file in Path(settings.base_model).expanduser().glob(pattern):
                shutil.copyfile(file, folder / file.name)
    task.put_in_place(folder, path)
    return count_weights(path)


def _download(name: str, revision: str, folder: Path) -> None:
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(name, revision=revision, local_dir=folder, allow_patterns=MODEL_FILES)
    except Exception as error:
        raise explain(error, f"base_model {name}") or error from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # where the client notes what it has fetched


def count_weights(folder: Path) -> int:
    """Numbers in the weights of a model's folder, by the headers of its files."""
    from math import prod

    from safetensors import safe_open

    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "np") as weights:
            total += sum(prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return total


def _texts(path: Path) -> Iterator[str]:
    """The conversations of a file without their special tokens, roles included; other rows as their texts."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            messages = row.get("messages") or [*_as_list(row.get("prompt")), *_as_list(row.get("completion"))]
            yield "".join(f"{each['role']}\n{each['content']}\n" for each in messages) or str(row.get("text", ""))


def _as_list(value: Any) -> list[dict[str, str]]:
    return value if isinstance(value, list) else [{"role": "user", "content": value}] if value else []
