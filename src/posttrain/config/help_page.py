"""The help page of a method, made from its flags."""

import dataclasses
import inspect
import shutil
import textwrap
from typing import Any

from posttrain.config.common import CommonConfig
from posttrain.config.effects import refused, without_effect
from posttrain.config.fields import flags_of
from posttrain.config.flag_words import default_of, placeholder, written
from posttrain.config.methods import METHODS
from posttrain.config.parse import FileOption, LaunchOptions

# What stands beside the methods, and what it is for.
COMMANDS = {
    "inspect": "what a data set is good for, what a model sees of it, and a command to start with",
    "plan": "what a run will take before it is started: steps, memory, time, disk",
    "check": "leaks of test rows, duplicates, contradictions and length bias, against thresholds",
    "compare": "two experiments: params, metrics, and which differences are more than noise",
    "sweep": "a grid of values, or several seeds, as experiments of DVC",
    "experiments": "all experiments as a table, to look at or for pandas",
    "report": "one HTML file with what ran, metrics, curves and answers, to read offline",
    "status": "what `dvc repro` would run and why; frozen stages and dirty trees come first",
    "verify": "a model against its provenance: is it whole, and would it come out the same today",
    "repro-check": "a stage run twice: equal to the bit, within tolerance, or where they part",
    "env": "versions, devices and what works here, to paste into a bug report",
    "completion": "a script that completes commands and flags in bash, zsh or fish",
}
SET_FIRST = [
    "model_name_or_path",
    "dataset_name",
    "output_dir",
    "reward_funcs",
    "reward_model_name_or_path",
    "learning_rate",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "packing",
    "beta",
    "num_generations",
    "max_completion_length",
    "eval_strategy",
    "use_peft",
    "report_to",
]
USAGE = (
    "Dashes and underscores are the same. A switch stands bare (--use_peft), as --no_use_peft, or with true or false. "
    "[In brackets]: the default. docs/flags.md tells how each flag compares with TRL's."
)


def help_page(method: str) -> str:
    """The text that `posttrain METHOD --help` prints.

    Args:
        method: A key of METHODS.
    """
    cls = METHODS[method]
    width = max(60, min(shutil.get_terminal_size().columns, 120))
    idle, no = without_effect(cls), refused(cls)
    flags = {name: field for name, field in flags_of(cls).items() if name not in idle | no}
    first = {name: flags[name] for name in SET_FIRST if name in flags}
    groups = [("What people set first", flags_of(FileOption) | first)]
    groups += [
        (title, {name: flags[name] for name in names if name in flags and name not in first})
        for title, names in flag_groups(cls)
    ]
    groups.append(("Launching", flags_of(LaunchOptions)))
    lines = [f"Usage: posttrain {method} [--config FILE] [--flag value ...]", ""]
    lines += [*textwrap.wrap(cls.summary[0].upper() + cls.summary[1:] + ".", width), "", *textwrap.wrap(USAGE, width)]
    for title, fields in groups:
        if fields:
            lines += ["", f"{title}:"]
            for name, field in fields.items():
                lines += _entry(name, field, width)
    lines += ["", "Known, but without effect here or (*) refused:"]
    names = [name for name, field in flags_of(cls).items() if name in idle | no]
    listed = " ".join(f"{name}*" if name in no else name for name in names)
    lines += textwrap.wrap(listed, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(lines)


def flag_groups(cls: type[CommonConfig]) -> list[tuple[str, list[str]]]:
    """Title and flag names of each class of flags, the method's own first.

    Args:
        cls: The config of a method.
    """
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
    stands_for = placeholder(name, field)
    text, choices, default = field.metadata["help"], field.metadata["choices"], written(default_of(field))
    if "|".join(choices) not in stands_for and not all(choice in text for choice in choices):
        text += f" One of: {', '.join(choices)}."
    if default != "false" and default:
        text += f" [{default}]"
    head = f"  --{name} {stands_for}".rstrip()
    column = 34 if width >= 100 else 30
    body = textwrap.wrap(text, width - column, break_on_hyphens=False)
    indent = " " * column
    if len(head) < column - 1:
        return [head.ljust(column) + body[0], *(indent + line for line in body[1:])]
    return [head, *(indent + line for line in body)]
