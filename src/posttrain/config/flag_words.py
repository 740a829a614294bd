"""How a flag is written down: its default, and what stands for its value, in help, in documents and for shells."""

import dataclasses
import typing
from typing import Any

from posttrain.config.fields import is_bool, members, nullable

# Flags whose value is a file, a folder, or may be a path of either kind beside other things.
FILES = {
    *("config", "config_file", "metrics_file", "plots_file", "provenance_file", "record_steps", "judge_rubric"),
    *("offenders", "output"),
}
FOLDERS = {"output_dir", "work_dir", "cache_dir"}
MAYBE_PATHS = {
    *("accelerate_config", "model_name_or_path", "dataset_name", "chat_template_path", "resume_from_checkpoint"),
    *("deepspeed", "fsdp_config", "accelerator_config", "test"),
    *("ref_model_name_or_path", "reward_model_name_or_path", "reward_funcs"),
}
_WORDS: dict[Any, str] = {int: "N", float: "X", str: "TEXT", dict: "JSON"}


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The value of a flag that nobody sets, transformers' where it owns the flag; None for one that has to be set."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    default = field.metadata.get("theirs", field.default)
    return None if default is dataclasses.MISSING else default


def written(value: Any) -> str:
    """A value as it is typed behind a flag; empty for None, and for what is empty itself."""
    if value is None or value == "" or value == [] or value == {}:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return ",".join(f"{key}={written(item)}" for key, item in value.items())
    return " ".join(map(written, value)) if isinstance(value, list) else str(value)


def placeholder(name: str, field: dataclasses.Field[Any]) -> str:
    """What stands for a flag's value behind it; empty for a switch, in brackets where the flag may stand alone.

    Args:
        name: Of the flag.
        field: The flag.
    """
    if name in FILES | FOLDERS:
        return "FILE" if name in FILES else "FOLDER"
    kinds = [kind for kind in members(field) if kind is not bool]
    if not kinds:
        return ""
    choices = "|".join(field.metadata["choices"])
    lists = [typing.get_args(kind)[0] for kind in kinds if typing.get_origin(kind) is list]
    if choices and len(choices) <= 20:
        word = choices
    elif lists and str not in kinds:
        word = "JSON" if dataclasses.is_dataclass(lists[0]) else f"{_WORDS[lists[0]]} ..."
    else:
        word = _WORDS[typing.get_origin(kinds[0]) or kinds[0]]
    return f"[{word}]" if is_bool(field) else word


def kind_of(field: dataclasses.Field[Any]) -> str:
    """The type of a flag in words."""
    words = {bool: "switch", int: "whole number", float: "number", str: "text", dict: "JSON"}
    kinds = []
    for kind in members(field):
        origin = typing.get_origin(kind) or kind
        if origin is list:
            item = typing.get_args(kind)[0]
            kinds.append(
                "list of JSON" if dataclasses.is_dataclass(item) else f"{words[item]}s".replace("texts", "words")
            )
        else:
            kinds.append(words[origin])
    return ", ".join(kinds + ["none"] * nullable(field))
