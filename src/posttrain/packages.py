"""Which packages are installed, in which versions."""

import functools
import importlib.metadata
import re


@functools.cache
def installed() -> dict[str, str]:
    """Versions by name, as the packages write them, in alphabetical order."""
    found = map(_name_and_version, importlib.metadata.distributions())
    first = {name: text for name, text in reversed(list(found)) if name}  # of two the one that an import would find
    return dict(sorted(first.items()))


@functools.cache
def version_of(name: str) -> str | None:
    """Of a package; None where it is not installed."""
    return next((text for other, text in installed().items() if _plain(other) == _plain(name)), None)


def _name_and_version(package: importlib.metadata.Distribution) -> tuple[str, str]:
    """From the head of its description alone: the library parses all of it, a tenth of a second for 200 packages."""
    text = package.read_text("METADATA") or package.read_text("PKG-INFO") or ""
    head = dict(line.partition(": ")[::2] for line in reversed(text.partition("\n\n")[0].splitlines()))
    return head.get("Name", ""), head.get("Version", "")


def _plain(name: str) -> str:
    """As PEP 503 has it: `Flash_Attn` is flash-attn."""
    return re.sub(r"[-_.]+", "-", name).lower()
