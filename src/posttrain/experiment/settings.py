"""The sections of params.yaml for stages that train nothing: a dataclass of flags, all of them needed."""

from collections.abc import Sequence
from typing import TypeVar

from posttrain.config.fields import convert_mapping, flags_of, label
from posttrain.errors import UserError
from posttrain.experiment.params import read_section

Settings = TypeVar("Settings")


def read_settings(cls: type[Settings], stage: str, path: str) -> Settings:
    """Read a section.

    Args:
        cls: a dataclass whose fields are flags.
        stage: the section's name.
        path: the params file.

    Raises:
        UserError: the file or the section is missing, or a key is unknown, missing or wrong.
    """
    where = f"{path}: {stage}"
    values = convert_mapping(cls, read_section(path, stage), where)
    for name, field in flags_of(cls).items():
        if name not in values:
            raise UserError(f"{label(name, where)} is missing ({field.metadata['help']})")
    return cls(**values)


def split_words(words: Sequence[str], usage: str) -> tuple[list[str], str]:
    """Split a stage's command line.

    Args:
        words: the words after the script's name.
        usage: what a message shows.

    Returns:
        the words that stand alone, and the params file (params.yaml where `--params FILE` is not among them).

    Raises:
        UserError: a flag is unknown or has no value.
    """
    alone, path, rest = [], "params.yaml", list(words)
    while rest:
        word = rest.pop(0)
        if word == "--params" and rest:
            path = rest.pop(0)
        elif word.startswith("-"):
            problem = "a value is missing" if word == "--params" else "no such flag"
            raise UserError(f"{word}: {problem}; usage: {usage}")
        else:
            alone.append(word)
    return alone, path
