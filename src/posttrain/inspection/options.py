"""What `posttrain inspect` is told: its own flags, and those of the methods, each for the methods that know it."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.config import METHODS, CommonConfig, LaunchOptions, parse_command_line, suggestion
from posttrain.config.fields import convert, flag, flags_of, is_bool
from posttrain.config.parse import FileOption
from posttrain.config.secrets import SECRETS
from posttrain.errors import UserError

USAGE = "posttrain inspect DATASET [--model_name_or_path MODEL] [--flag value ...]"
NO_MODEL = "no-model-is-named"
_DEFAULT_ROWS = 5000


@dataclass(kw_only=True)
class InspectFlags:
    """The flags that only `posttrain inspect` has."""

    method: str | None = flag(None, "See the rows as this method does; unset: the one that fits.", choices=METHODS)
    num_rows: int | None = flag(_DEFAULT_ROWS, "Rows to read, from the first; none: all.", low=1)
    color: str = flag("auto", "Mark in colour: auto is on a terminal.", choices=("auto", "always", "never"))


@dataclass
class Request:
    """What is asked for.

    Args:
        flags: of inspect itself.
        configs: of each method that the other flags suit; dataset and model are the same in all of them.
        refused: why not, for the others.
        given: the user's flags and the words behind them, for each method those that it knows; without secrets.
    """

    flags: InspectFlags
    configs: dict[str, CommonConfig] = field(default_factory=dict)
    refused: dict[str, UserError] = field(default_factory=dict)
    given: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    @property
    def any_config(self) -> CommonConfig:
        """The config of the method that is asked for, or of the first that there is."""
        return self.configs[self.flags.method or next(iter(self.configs))]

    @property
    def has_model(self) -> bool:
        return self.any_config.model_name_or_path != NO_MODEL


def parse_request(argv: Sequence[str]) -> Request:
    """Understand the words after `posttrain inspect`.

    Args:
        argv: the data set, or flags that name it, and further flags.

    Raises:
        UserError: a flag is unknown, or no method takes it as it stands.
    """
    given = _grouped(argv)
    own = {name: given.pop(name) for name in flags_of(InspectFlags) if name in given}
    request = Request(InspectFlags(**{name: _own_value(name, words) for name, words in own.items()}))
    takers = {name: [method for method in METHODS if name in _names(method)] for name in given}
    for name, methods in takers.items():
        if not methods:
            known = {*flags_of(InspectFlags), *(each for method in METHODS for each in _names(method))}
            raise UserError(f"--{name}: no such flag{suggestion(name, sorted(known))}; usage: {USAGE}")
    for method in METHODS:
        known_here = {name: words for name, words in given.items() if method in takers[name]}
        request.given[method] = {name: words for name, words in known_here.items() if name not in SECRETS}
        words = as_words(known_here)
        try:
            config, _ = parse_command_line(method, words, section=_stand_ins(method, given))
        except UserError as error:
            request.refused[method] = error
        else:
            request.configs[method] = config
    _check_something_left(request, takers)
    return request


def as_words(flags: Mapping[str, Sequence[str]]) -> list[str]:
    """Flags as they are typed."""
    return [word for name, values in flags.items() for word in (f"--{name}", *values)]


def _grouped(argv: Sequence[str]) -> dict[str, list[str]]:
    """The words behind each flag; the data set, which stands in front of all flags, behind `dataset_name`."""
    words = [*argv]
    if words and not words[0].startswith("--"):
        words.insert(0, "--dataset_name")
    groups: dict[str, list[str]] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            typed, has_value, value = word[2:].partition("=")
            name = typed.replace("-", "_")
            groups[name] = [value] if has_value else []
        else:
            groups[name].append(word)
    for name in ("dataset_name", *flags_of(InspectFlags)):
        if name in groups and len(groups[name]) != 1:
            found = f"one word, not {len(groups[name])} ({' '.join(groups[name])})" if groups[name] else "a value"
            raise UserError(f"--{name} takes {found}; usage: {USAGE}")
    return groups


def _own_value(name: str, words: list[str]) -> Any:
    return convert(flags_of(InspectFlags)[name], words[0], f"--{name}")


def _names(method: str) -> set[str]:
    """The flags of a method, of launching it, and the switches of it that can be switched off."""
    fields = flags_of(METHODS[method])
    switched_off = (f"no_{name}" for name, each in fields.items() if is_bool(each))
    return {*fields, *switched_off, *flags_of(FileOption), *flags_of(LaunchOptions)}


def _stand_ins(method: str, given: dict[str, list[str]]) -> dict[str, object]:
    """What a method has to be told and the user need not: to look at rows takes no model, steps or reward."""
    values: dict[str, object] = {"model_name_or_path": NO_MODEL, "max_steps": 20}
    names = {"reward_funcs", "reward_model_name_or_path", "config"}
    if "reward_funcs" in _names(method) and not names & given.keys():
        values["reward_funcs"] = ["accuracy_reward"]
    return values


def _check_something_left(request: Request, takers: dict[str, list[str]]) -> None:
    method = request.flags.method
    if method in request.refused:
        raise request.refused[method]
    for methods in ([method] if method else METHODS, *takers.values()):
        if all(each in request.refused for each in methods):
            error = request.refused[next(iter(methods))]
            hint = f"; usage: {USAGE}" if str(error).startswith("dataset_name is missing") else ""
            raise UserError(f"{error}{hint}", error.page)


def help_text() -> str:
    """What `posttrain inspect --help` prints."""
    fields = flags_of(InspectFlags)
    lines = [
        f"Usage: {USAGE}",
        "",
        "Reads the first rows of a file, folder or hub id, and tells which methods can train on them, what a",
        "model sees of a row and which of its tokens are trained on, how long rows are and what max_length",
        "takes from them, what is odd about chat template and special tokens, and a command to start with.",
        "Without --model_name_or_path: what can be said without a tokenizer. Nothing is trained or written.",
        "",
    ]
    for name, each in fields.items():
        default = f" [{each.default}]" if each.default is not None else ""
        choices = f" One of: {', '.join(each.metadata['choices'])}." if each.metadata["choices"] else ""
        text = f"  --{name:<12}{each.metadata['help']}{choices}{default}"
        lines += textwrap.wrap(text, 100, subsequent_indent=" " * 16)
    return "\n".join(
        [
            *lines,
            "",
            "All flags of the methods are taken too, such as --max_length or --eos_token; --dataset_streaming",
            "reads the first rows of a large data set of the hub without fetching the others.",
        ]
    )
