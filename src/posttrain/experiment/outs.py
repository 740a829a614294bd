"""What two runs of a stage have written, file by file: the same bytes, the same numbers within a tolerance, or not."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.provenance import deterministic, is_timing

Read = Callable[[Path], Any]


@dataclass
class Comparison:
    """What was found.

    Args:
        word: "bit-equal", "equal within tolerance" or "diverged".
        equal: files that are the same to the byte, or but for what may differ: timings, hour and place.
        close: files whose numbers are within the tolerance, and how far apart they are.
        apart: files that are not, and what differs most.
        rtol, atol: a difference of at most atol + rtol × |number| counts as none.
    """

    rtol: float
    atol: float
    word: str = "bit-equal"
    equal: list[str] = field(default_factory=list)
    close: dict[str, str] = field(default_factory=dict)
    apart: dict[str, str] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """For people."""
        if self.equal:
            yield f"the same to the bit: {len(self.equal)} file{'s' * (len(self.equal) > 1)}"
        for name, text in self.close.items():
            yield f"within rtol {self.rtol:g}, atol {self.atol:g}: {name}: {text}"
        for name, text in self.apart.items():
            yield f"differs: {name}: {text}"


def compare_outs(first: Path, second: Path, outs: Sequence[str], rtol: float, atol: float) -> Comparison:
    """Compares two folders.

    Args:
        first, second: the folders.
        outs: files and folders in them.
        rtol, atol: see `Comparison`.
    """
    result = Comparison(rtol, atol)
    for name in sorted({name for folder in (first, second) for out in outs for name in _files(folder, out)}):
        a, b = first / name, second / name
        if not (a.is_file() and b.is_file()):
            result.apart[name] = "only one of the runs wrote it"
        elif a.read_bytes() == b.read_bytes():
            result.equal.append(name)
        else:
            _compare(result, name, a, b)
    # The manifest holds hashes of the other files, and differs where they do.
    manifests = [name for name in result.apart if Path(name).name == "manifest.json"]
    if len(manifests) == len(result.apart) and result.close:
        for name in manifests:
            result.close[name] = "hashes of the files above"
            del result.apart[name]
    result.word = "diverged" if result.apart else "equal within tolerance" if result.close else "bit-equal"
    return result


def _files(folder: Path, out: str) -> Iterator[str]:
    path = folder / out
    found = [path] if path.is_file() else (file for file in path.rglob("*") if file.is_file())
    yield from (file.relative_to(folder).as_posix() for file in found)


def _compare(result: Comparison, name: str, first: Path, second: Path) -> None:
    read = _reader(first)
    if read is None:
        result.apart[name] = "other bytes"
        return
    try:
        a, b = read(first), read(second)
    except (ValueError, LookupError):
        result.apart[name] = "other bytes"
        return
    if first.suffix != ".safetensors" and a == b:  # but for timings and the like
        result.equal.append(name)
        return
    differences = list(_tensors(a, b) if first.suffix == ".safetensors" else _numbers(a, b, ""))
    if not differences:
        result.apart[name] = "the same numbers, written in another way"
        return
    beyond = [one for one in differences if not one[1] <= result.atol + result.rtol * one[2]]
    where, difference, size = max(beyond or differences, key=lambda one: math.inf if one[1] != one[1] else one[1])
    relative = f", relative {difference / size:.3g}" if size else ""
    by = "" if math.isinf(difference) else f", at most by {difference:.3g}{relative}"
    text = f"{len(differences)} differ{by} ({where})"
    (result.apart if beyond else result.close)[name] = text


def _reader(file: Path) -> Read | None:
    if file.name.endswith("provenance.json"):
        return lambda path: deterministic(json.loads(path.read_text(encoding="utf-8")))
    readers: dict[str, Read] = {
        ".json": lambda path: _without_timings(json.loads(path.read_text(encoding="utf-8"))),
        ".jsonl": lambda path: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()],
        ".csv": lambda path: [_parsed(row) for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines())],
        ".safetensors": _load,
    }
    return readers.get(file.suffix)


def _load(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


def _without_timings(content: Any) -> Any:
    if not isinstance(content, dict):
        return content
    return {name: value for name, value in content.items() if not is_timing(name) and not name.endswith("seconds")}


def _parsed(row: dict[str, str]) -> dict[str, float | str]:
    found: dict[str, float | str] = {}
    for name, text in row.items():
        try:
            found[name] = float(text)
        except ValueError:
            found[name] = text
    return found


Difference = tuple[str, float, float]


def _numbers(a: Any, b: Any, where: str) -> Iterator[Difference]:
    """Places where two readings of a file differ, by how much (infinitely, where they are no numbers), and the size of
    the larger number."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        for name in a:
            yield from _numbers(a[name], b[name], f"{where}.{name}" if where else str(name))
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for number, (one, other) in enumerate(zip(a, b, strict=True)):
            yield from _numbers(one, other, f"{where}[{number}]")
    elif isinstance(a, float) and isinstance(b, float):
        if a != b and not (math.isnan(a) and math.isnan(b)):
            yield where, abs(a - b), max(abs(a), abs(b))
    elif a != b:
        yield where, math.inf, 0.0


def _tensors(a: Any, b: Any) -> Iterator[Difference]:
    """The same of tensors; of each that differs, the number that does most."""
    import torch

    for name in dict.fromkeys([*a, *b]):
        one, other = a.get(name), b.get(name)
        if one is None or other is None or one.shape != other.shape or one.dtype != other.dtype:
            yield name, math.inf, 0.0
        elif not torch.equal(one, other):
            one, other = one.double().flatten(), other.double().flatten()
            apart = (one - other).abs()
            place = int(apart.nan_to_num(math.inf).argmax())
            yield name, float(apart[place]), max(abs(float(one[place])), abs(float(other[place])))


def md5_of(path: Path) -> str:
    """The hash that dvc.lock has of a file or folder: of a folder, that of the list of its files.

    Args:
        path: that is there.
    """
    if path.is_file():
        return _md5(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    entries = [{"md5": _md5(file), "relpath": file.relative_to(path).as_posix()} for file in files]
    entries.sort(key=lambda entry: entry["relpath"])
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
