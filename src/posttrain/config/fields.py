"""What a flag is: a dataclass field with one line of help, and the way from text or a YAML value to its value."""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from posttrain.config.json_text import read_json, show
from posttrain.config.yaml_files import parse_scalar
from posttrain.errors import UserError

NONE_WORDS = {"none", "null"}
BOOL_WORDS = {"true": True, "yes": True, "on": True, "t": True, "y": True, "1": True}
BOOL_WORDS |= {"false": False, "no": False, "off": False, "f": False, "n": False, "0": False}
PAIRS = re.compile(r"[A-Za-z_]\w*=[^,]*(,[A-Za-z_]\w*=[^,]*)*")
WHOLE = re.compile(r"[+-]?[0-9]{1,400}")
MOST = 2**53  # whole numbers up to this one are the same in JSON, YAML and every library
# In a union the narrow readings come before the wide ones: text is what nothing else could read.
READING_ORDER = (bool, int, float, dict, list, str)
MISS = object()


def flag(
    default: Any,
    help: str,
    *,
    choices: Iterable[str] = (),
    low: float | None = None,
    high: float | None = None,
    also: Mapping[str, str] | None = None,
) -> Any:
    """A dataclass field that is a flag.

    Args:
        default: The value where the user gives none.
        help: One line for `--help`.
        choices: The values that text (or each item of a list) may take; empty means any.
        low: The smallest number allowed.
        high: The largest number allowed.
        also: Older words for some of the choices.
    """
    metadata = {"help": help, "choices": tuple(choices), "low": low, "high": high, "also": also or {}}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def theirs(default: Any, help: str, **limits: Any) -> Any:
    """A flag that transformers owns: None here means that transformers' own default holds.

    Args:
        default: transformers' default, shown by `--help`; where it is not None, `none` is no value for the flag.
        help: One line for `--help`.
        **limits: choices, low and high, as for `flag`.
    """
    field = flag(None, help, **limits)
    field.metadata = types.MappingProxyType({**field.metadata, "theirs": default})
    return field


def flags_of(cls: type) -> dict[str, dataclasses.Field[Any]]:
    """The flags among a dataclass's fields, by name, in the order of their definition."""
    return {field.name: field for field in dataclasses.fields(cls) if "help" in field.metadata}


def members(field: dataclasses.Field[Any]) -> tuple[Any, ...]:
    """The types that a flag's value may have, without None."""
    kind = field.type
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    return tuple(kind for kind in kinds if kind is not types.NoneType)


def nullable(field: dataclasses.Field[Any]) -> bool:
    """Whether the user may say `none`."""
    optional = isinstance(field.type, types.UnionType) and types.NoneType in typing.get_args(field.type)
    return optional and field.metadata.get("theirs") is None


def is_bool(field: dataclasses.Field[Any]) -> bool:
    """Whether the flag may stand alone on the command line."""
    return bool in members(field)


def takes_list(field: dataclasses.Field[Any]) -> bool:
    """Whether several words may follow the flag on the command line."""
    return any(typing.get_origin(kind) is list for kind in members(field))


def label(name: str, where: str) -> str:
    """How a message names a flag: `--beta`, `sft.yaml: beta` or `params.yaml: dpo.beta`."""
    name = (name if len(name) <= 80 else name[:77] + "...").encode("utf-8", "backslashreplace").decode()
    if not where:
        return f"--{name}"
    return f"{where}.{name}" if ": " in where else f"{where}: {name}"


def suggestion(name: str, known: Iterable[str]) -> str:
    """The end of a message that names the nearest known name; empty where none is near."""
    near = nearest(name, known)
    return f"; did you mean {near}?" if near else ""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that most resembles `name`, if any does."""
    if len(name) > 200:  # the comparison takes its time
        return None
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def convert(field: dataclasses.Field[Any], raw: Any, called: str) -> Any:
    """A flag's value from text or from what a YAML file holds.

    Args:
        field: The flag.
        raw: A word of the command line, a list of words, or a YAML value.
        called: What an error message calls the flag.

    Raises:
        UserError: The value has the wrong type, is none of the choices or out of range.
    """
    if raw is False and "no" in field.metadata["choices"]:
        raw = "no"  # YAML 1.1 readers turn a bare `no` into false
    raw = field.metadata["also"].get(str(raw).lower(), raw)
    if nullable(field) and (raw is None or (isinstance(raw, str) and raw.lower() in NONE_WORDS)):
        return None
    kinds = members(field)
    for kind in sorted(kinds, key=lambda kind: READING_ORDER.index(typing.get_origin(kind) or kind)):
        value = _read(kind, raw, alone=len(kinds) == 1, called=called)
        if value is not MISS:
            _check_limits(field, value, called)
            return value
    wanted = [_describe(kind) for kind in kinds] + ["none"] * nullable(field)
    raise UserError(f"{called}: {show(raw)} is not {' or '.join(wanted)}")


def convert_mapping(cls: type, mapping: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """The values of the flags that a YAML mapping sets.

    Args:
        cls: The dataclass whose flags may stand there.
        mapping: Names and values.
        where: Where the mapping stands, for messages.

    Raises:
        UserError: A key is unknown or a value cannot be converted.
    """
    known = flags_of(cls)
    values = {}
    for key, raw in mapping.items():
        called = label(str(key), where)
        if key not in known:
            raise UserError(f"{called}: no such key{suggestion(str(key), known)}")
        values[key] = convert(known[key], raw, called)
    return values


def _read(kind: Any, raw: Any, alone: bool, called: str) -> Any:
    """`raw` as a value of `kind`, or MISS; `alone`: the flag takes nothing but this kind."""
    origin = typing.get_origin(kind) or kind
    if origin is bool:
        return _read_bool(raw, alone)
    if origin is int:
        whole = isinstance(raw, int) and not isinstance(raw, bool)
        return int(raw) if whole or (isinstance(raw, str) and WHOLE.fullmatch(raw)) else MISS
    if origin is float:
        return _read_float(raw)
    if origin is dict:
        return _read_dict(raw, called)
    if origin is list:
        return _read_list(typing.get_args(kind)[0], raw, alone, called)
    return raw if isinstance(raw, str) else MISS


def _read_bool(raw: Any, alone: bool) -> Any:
    if isinstance(raw, bool):
        return raw
    word = str(raw).lower() if isinstance(raw, str | int) else ""
    return BOOL_WORDS.get(word, MISS) if alone or word in ("true", "false") else MISS


def _read_float(raw: Any) -> Any:
    if isinstance(raw, bool) or not isinstance(raw, int | float | str):
        return MISS
    try:
        number = float(raw)
    except (ValueError, OverflowError):
        return MISS
    typed = isinstance(raw, str) and (not raw.isascii() or "_" in raw)  # float() reads more than people write
    return number if math.isfinite(number) and not typed else MISS


def _read_dict(raw: Any, called: str) -> Any:
    if isinstance(raw, dict):
        return raw
    if not isinstance(raw, str):
        return MISS
    if raw.lstrip().startswith("{"):
        return read_json(raw, called)
    if not PAIRS.fullmatch(raw):
        return MISS
    return {name: parse_scalar(text) for name, _, text in (pair.partition("=") for pair in raw.split(","))}


def _read_list(item: Any, raw: Any, alone: bool, called: str) -> Any:
    if isinstance(raw, str) and raw.lstrip().startswith("["):
        raw = read_json(raw, called)
    elif not isinstance(raw, list) and alone:
        raw = [raw]
    if not isinstance(raw, list):
        return MISS
    if dataclasses.is_dataclass(item):
        return [_read_dataclass(typing.cast(type, item), entry, f"{called}[{i}]") for i, entry in enumerate(raw)]
    values = [_read(item, entry, alone=True, called=called) for entry in raw]
    return MISS if any(value is MISS for value in values) else values


def _read_dataclass(cls: type, entry: Any, called: str) -> Any:
    if not isinstance(entry, dict):
        raise UserError(f"{called}: {show(entry)} is not a mapping of {', '.join(flags_of(cls))}")
    values = convert_mapping(cls, entry, called)
    for name, field in flags_of(cls).items():
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING and name not in values:
            raise UserError(f"{called}: {name} is missing")
    return cls(**values)


def _check_limits(field: dataclasses.Field[Any], value: Any, called: str) -> None:
    choices, low, high = (field.metadata[key] for key in ("choices", "low", "high"))
    for item in value if isinstance(value, list) else [value]:
        if choices and isinstance(item, str) and item not in choices:
            raise UserError(f"{called}: {show(item)} is not one of {', '.join(choices)}{suggestion(item, choices)}")
        if isinstance(item, str):
            _check_text(field, item, called)
        if isinstance(item, int | float) and not isinstance(item, bool):
            if isinstance(item, int) and abs(item) > MOST:
                raise UserError(f"{called}: {show(item)} is too {'large' if item > 0 else 'small'}")
            if low is not None and item < low:
                raise UserError(f"{called}: {item} is too small; it must be at least {low:g}")
            if high is not None and item > high:
                raise UserError(f"{called}: {item} is too large; it must be at most {high:g}")


def _check_text(field: dataclasses.Field[Any], text: str, called: str) -> None:
    """Raise for text that no file name, token or name of anything can be."""
    if not text.strip() and field.metadata.get("theirs") != "":
        raise UserError(f"{called}: the text is empty; write what is meant, or leave it out")
    if "\0" in text:
        raise UserError(f"{called}: {show(text)} holds a NUL character")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{called}: {show(text)} holds bytes that are not UTF-8 text") from None


def _describe(kind: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    if kind in names:
        return names[kind]
    if typing.get_origin(kind) is dict:
        return 'a mapping (JSON such as {"key": 1}, or key=1,other=2)'
    item = typing.get_args(kind)[0]
    if dataclasses.is_dataclass(item):
        return f"a list of mappings with the keys {', '.join(flags_of(typing.cast(type, item)))}"
    return {int: "a list of whole numbers", float: "a list of numbers"}.get(item, "a list of texts")
