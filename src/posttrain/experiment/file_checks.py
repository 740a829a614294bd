"""Files against the hashes that a provenance has of them: one line a part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.checkpoints import sha256_of
from posttrain.disk import in_words
from posttrain.file_hashes import base_model
from posttrain.wording import some

OK, DIFFERS, UNKNOWN = "✓", "✗", "?"
_BAR_FROM = 2**28  # bytes: hashing less takes under a second


@dataclass(frozen=True)
class Check:
    """One line.

    Args:
        part: what is looked at: "model", "base model", "training rows", "code", "packages" …
        verdict: OK, DIFFERS, or UNKNOWN where it cannot be known here.
        text: what was found.
        kind: "model": its own files; "origin": files that it was made from; "today": what would make another one.
    """

    part: str
    verdict: str
    text: str
    kind: str


def check_models(part: str, about: dict[str, Any], then: Path) -> Iterator[Check]:
    """Of a model that was read, and of the one that it was an adapter for.

    Args:
        part: what it was for.
        about: its section of the provenance.
        then: the folder that the run was started in.
    """
    name = about["name"]
    if "commit" in about:
        now = base_model(name, about["commit"] or about["revision"])
        at = f"{name} of the hub at commit {(about['commit'] or 'unknown')[:12]}"
        if not now["files"]:
            yield Check(part, UNKNOWN, f"{at}; not downloaded to look", "origin")
        else:
            same = all(now["files"].get(file) == one for file, one in about["files"].items())
            yield Check(part, OK if same else DIFFERS, f"{at}: {in_time(same)} in the cache of this machine", "origin")
    else:
        folder = next((root for root in (Path(name), then / name) if root.is_dir()), None)
        if folder is None:
            yield Check(part, UNKNOWN, f"{name} is not here", "origin")
        else:
            yield check_files(part, folder, about["files"], "origin")
    if "base" in about:
        yield from check_models(f"{part}'s own base", about["base"], then)


def root_of_files(then: Path, files: dict[str, Any]) -> Path:
    """Where files lie: here, or in the folder that the run was started in.

    Args:
        then: that folder.
        files: by path.
    """
    return Path() if any(Path(name).exists() for name in files) else then


def check_files(part: str, root: Path, files: dict[str, Any], kind: str) -> Check:
    """Sizes first, then hashes.

    Args:
        part: what the files are.
        root: that their names are relative to.
        files: size and sha256 by name.
        kind: see `Check`.
    """
    if not files:
        return Check(part, UNKNOWN, "no file of it is known", kind)
    missing = [name for name in files if not (root / name).is_file()]
    if kind == "origin" and len(missing) == len(files):
        return Check(part, UNKNOWN, f"not here: {some(missing)}", kind)
    there = [name for name in files if name not in missing]
    sized = [name for name in there if (root / name).stat().st_size == files[name]["size"]]
    hashed = [name for name in sized if files[name]["sha256"] is not None]
    hashes = dict(zip(hashed, _hashes([root / name for name in hashed], part), strict=True))
    other = [name for name in there if name not in sized or hashes.get(name) != files[name]["sha256"]]
    if missing or other:
        gone = [f"missing: {some(missing)}"] if missing else []
        return Check(part, DIFFERS, "; ".join([*gone, *([f"changed: {some(other)}"] if other else [])]), kind)
    size_alone = [name for name in sized if name not in hashed]
    if size_alone:
        text = f"{some(size_alone)}: of the same size; rows were streamed, so nobody has read them through"
        return Check(part, UNKNOWN, text, kind)
    return Check(part, OK, f"{len(files)} file{'s' * (len(files) > 1)}, {_size(files)}", kind)


def _hashes(files: list[Path], part: str) -> list[str]:
    """With a bar where they are large."""
    sizes = [file.stat().st_size for file in files]
    if sum(sizes) < _BAR_FROM:
        return sha256_of(files)
    from tqdm import tqdm

    found = []
    with tqdm(total=sum(sizes), unit="B", unit_scale=True, unit_divisor=1024, desc=part, delay=1, leave=False) as bar:
        for start in range(0, len(files), 8):
            found += sha256_of(files[start : start + 8])
            bar.update(sum(sizes[start : start + 8]))
    return found


def _size(files: dict[str, Any]) -> str:
    total = sum(one["size"] for one in files.values())
    return in_words(total) if total >= 2**20 else f"{total / 2**10:,.0f} KiB"


def in_time(same: bool) -> str:
    """In words."""
    return "as it was" if same else "not as it was"
