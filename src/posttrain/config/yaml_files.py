"""YAML files as the user means them: YAML 1.2 words, no key twice, and errors that name the line."""

import re
from pathlib import Path
from typing import Any

import yaml

from posttrain.errors import UserError

TAG = "tag:yaml.org,2002:"
# Settings are some kilobytes, of some levels; the parser takes seconds for 256 KiB, and a stack has an end.
MOST_BYTES, MOST_VALUES = 2**18, 100_000
# For long files that a program has written, such as dvc.lock.
FastLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Loader(yaml.SafeLoader):
    """Safe loading with the scalars of YAML 1.2, as DVC has them: `1e-4` is a number, `no` and a date are text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's attribute; SafeLoader keeps its own)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys are all different."""
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.tag != TAG + "merge":
                if key.value in lines:
                    raise UserError(
                        f"{key.start_mark.name} line {line}: the key {key.value} already stands in line"
                        f" {lines[key.value]}; leave one of them out"
                    )
                lines[key.value] = line
        return super().construct_mapping(node, deep)


def _whole_number(loader: Loader, node: yaml.ScalarNode) -> int:
    text = node.value
    if len(text) > 400:  # Python neither reads nor writes numbers of thousands of digits
        mark = node.start_mark
        raise UserError(f"{mark.name} line {mark.line + 1}: a number of {len(text):,} digits is too large for anything")
    return int(text, 0) if text.startswith(("0x", "0o")) else int(text)


for tag, pattern in {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "merge": "<<",
}.items():
    Loader.add_implicit_resolver(TAG + tag, re.compile(rf"({pattern})\Z"), None)
Loader.add_constructor(TAG + "int", _whole_number)


def parse_scalar(text: str) -> Any:
    """The value that a bare word has in YAML: a number, true, false, null, or else the text itself."""
    loader = Loader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))
    return loader.construct_object(yaml.ScalarNode(tag, text), deep=True)


def _read(path: str | Path) -> str:
    try:
        if Path(path).is_file() and Path(path).stat().st_size > MOST_BYTES:
            raise UserError(f"{path}: larger than {MOST_BYTES // 2**10:,} KiB, which no settings are; name a YAML file")
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a YAML file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{str(path)!r}: cannot be read ({error}); name a YAML file") from None


def _parse(text: str, name: str) -> Any:
    """The only document of a YAML text. What its aliases repeat is counted first: whoever copies it writes it out."""
    loader = Loader(text)
    loader.name = name
    node = loader.get_single_node()
    if node is None:
        return None
    if _count(node, {}) > MOST_VALUES:
        raise UserError(f"{name}: its aliases (*) stand for more than {MOST_VALUES:,} values; write out what is meant")
    return loader.construct_document(node)


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Values under a node, with those behind aliases.

    Args:
        node: of the parsed text.
        known: counts by id of the node; -1 for one that is being counted.
    """
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = -1
        children = [part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,))]
        known[id(node)] = 1 + sum(_count(child, known) for child in children)
    if known[id(node)] < 0:
        mark = node.start_mark
        raise UserError(f"{mark.name} line {mark.line + 1}: the value holds itself, by an alias (*); write it out")
    return known[id(node)]


def load_yaml(path: str | Path) -> dict[Any, Any]:
    """The mapping that a YAML file holds.

    Args:
        path: The file.

    Raises:
        UserError: The file is missing, empty, not UTF-8, not YAML, not a mapping, or holds a key twice.
    """
    try:
        content = _parse(_read(path), str(path))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path} line {line}: not YAML ({error.problem})") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML ({str(error).splitlines()[0]})") from None
    except RecursionError:
        raise UserError(f"{path}: its values are nested too deep; settings have a few levels") from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: a value is not what its tag says ({str(error)[:80]})") from None
    if not isinstance(content, dict):
        found = "the file is empty" if content is None else f"it holds a {type(content).__name__}"
        raise UserError(f"{path}: wanted lines of the form `key: value`, but {found}")
    return content
