"""The help page of a method, made from its flags."""

import dataclasses
import inspect
import shutil
import textwrap
import typing
from typing import Any

from posttrain.config.common import CommonConfig
from posttrain.config.fields import flags_of, members
from posttrain.config.methods import METHODS
from posttrain.config.parse import FileOption, LaunchOptions

SET_FIRST = [
    "model_name_or_path",
    "dataset_name",
    "output_dir",
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "packing",
    "loss_type",
    "beta",
    "reward_funcs",
    "reward_model_name_or_path",
    "num_generations",
    "max_completion_length",
    "eval_strategy",
    "eval_steps",
    "logging_steps",
    "report_to",
    "use_peft",
    "seed",
]
COLUMN = 34


def help_page(method: str) -> str:
    """The text that `posttrain METHOD --help` prints.

    Args:
        method: A key of METHODS.
    """
    cls = METHODS[method]
    flags = flags_of(cls)
    width = max(60, min(shutil.get_terminal_size().columns, 120))
    first = {name: flags[name] for name in SET_FIRST if name in flags}
    groups = [("What people set first", flags_of(FileOption) | first)]
    groups += [(title, {name: flags[name] for name in names if name not in first}) for title, names in _groups(cls)]
    groups.append(("Launching", flags_of(LaunchOptions)))
    lines = [
        f"Usage: posttrain {method} [--config FILE] [--flag value ...]",
        "",
        "Dashes and underscores are the same; switches stand bare, as --no_NAME, or with true or false.",
    ]
    for title, fields in groups:
        if fields:
            lines += ["", f"{title}:"]
            for name, field in fields.items():
                lines += _entry(name, field, width)
    return "\n".join(lines)


def _groups(cls: type[CommonConfig]) -> list[tuple[str, list[str]]]:
    """Title and flag names of each class of flags, the method's own first."""
    common = CommonConfig.__mro__
    own = [base for base in cls.__mro__ if base not in common]
    seen: set[str] = set()
    groups = []
    for base in own + list(reversed(common)):
        names = [name for name in inspect.get_annotations(base) if name in flags_of(cls) and name not in seen]
        seen.update(names)
        groups.append(((base.__doc__ or "").partition("\n")[0], names))
    return groups


def _entry(name: str, field: dataclasses.Field[Any], width: int) -> list[str]:
    default = field.metadata.get("theirs", field.default)
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    text = field.metadata["help"]
    choices = field.metadata["choices"]
    if choices:
        text += f" One of: {', '.join(choices)}."
    if default is not False and default not in (None, "", []):
        text += f" [{' '.join(default) if isinstance(default, list) else default}]"
    head = f"  --{name}{_placeholder(field)}"
    body = textwrap.wrap(text, width - COLUMN, break_on_hyphens=False)
    indent = " " * COLUMN
    if len(head) < COLUMN - 1:
        return [head.ljust(COLUMN) + body[0], *(indent + line for line in body[1:])]
    return [head, *(indent + line for line in body)]


def _placeholder(field: dataclasses.Field[Any]) -> str:
    names = {bool: "", int: " N", float: " X", str: " TEXT", dict: " JSON", list: " ITEM ..."}
    kinds = [typing.get_origin(kind) or kind for kind in members(field)]
    return names[bool] if bool in kinds else names[kinds[0]]
