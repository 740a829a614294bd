"""From the flags to a source: `dataset_name` (a file, a folder or a hub id) or a `datasets:` mixture, and the split."""

import difflib
import glob
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from posttrain.config import CommonConfig, DatasetSource
from posttrain.data.files import check_regular
from posttrain.data.json_text import shortened
from posttrain.data.readers import SUFFIXES, known_suffix
from posttrain.data.slices import Bounds, Slice, parse_split
from posttrain.data.sources import FileSource, HeldOut, Mixture, Part, Source
from posttrain.data.streamed_sources import FirstRows, Interleaved
from posttrain.data.tables import open_hub, open_saved
from posttrain.errors import UserError
from posttrain.hub import hide_token
from posttrain.hub_access import BUILDERS
from posttrain.strict_json import parse_json

Role = Literal["train", "test"]
DEFAULT_SEED = 42  # transformers' own


def open_source(config: CommonConfig, role: Role) -> Source | None:
    """Find the rows that the flags ask for.

    Args:
        config: with dataset_name, dataset_config, dataset_train_split, dataset_test_split, datasets, test_split_size
            and seed.
        role: "train", or "test" for what is evaluated on. The names of the splits are the flags'. A test split that
            carries its default name and is not there is looked for as "validation". `test_split_size` holds a part of
            the training split out and takes precedence over a test split: a random one, decided by the seed alone; the
            first rows where rows are streamed, which nobody counts.

    Returns:
        The source, or None where there is nothing to test on.

    Raises:
        UserError: no such file, folder, split or hub id; an unknown key in a mixture.
    """
    size = config.test_split_size
    wanted = _wanted_split(config, role if size is None else "train")
    source: Source | None
    streamed = config.is_streamed
    if config.datasets:
        source = open_mixture(config.datasets, streamed) if wanted.role == "train" else None
    elif config.dataset_name:
        named = partial(open_named, config.dataset_name, config.dataset_config, streamed=streamed)
        source = _open_split(wanted.name, wanted.flag, lambda name: named(wanted._replace(name=name)), streamed)
    else:
        raise UserError("no data: give --dataset_name (a file, a folder or a hub id) or a `datasets:` mixture")
    if source is None or size is None:
        return source
    if streamed:
        return FirstRows(source, int(size), held_out=role == "test")
    seed = DEFAULT_SEED if config.seed is None else config.seed
    return HeldOut(source, size, seed, held_out=role == "test")


class WantedSplit(NamedTuple):
    """Which split is looked for.

    Args:
        name: "train", "test", or what the flags say.
        role: what it is for. A file, and a single data set saved to disk, are for training whatever the name.
        required: True = a missing one is an error. False = "validation" is tried, and none is fine.
        flag: where the user names it.
    """

    name: str
    role: Role = "train"
    required: bool = True
    flag: str = "--dataset_train_split"


def _wanted_split(config: CommonConfig, role: Role) -> WantedSplit:
    if role == "train":
        return WantedSplit(config.dataset_train_split)
    chosen = "dataset_test_split" in config.explicit or config.dataset_test_split != "test"
    return WantedSplit(config.dataset_test_split, role, chosen, "--dataset_test_split")


def open_named(
    name: str, hub_config: str | None, wanted: WantedSplit, streamed: bool = False, where: str = "--dataset_name"
) -> Source | None:
    """Open one split of a file, a folder or a hub id.

    Args:
        name: path or hub id; what exists locally goes first.
        hub_config: the hub data set's configuration.
        wanted: the split.
        streamed: rows are read as they are asked for, in one direction.
        where: the flag or key that holds the name, for messages.

    Raises:
        UserError: it is not there, and required; or it is local and has no configurations.
    """
    path = _path_of(name, where)
    if hub_config is not None and path.exists():
        raise UserError(
            f"{name}: a local file or folder has no configurations, such as {hub_config!r}; leave --dataset_config "
            "out, or name the folder of that configuration",
            "troubleshooting.md#data",
        )
    if path.is_file():
        return _whole(path, wanted, lambda: FileSource((path,), streamed))
    if path.is_dir():
        return _open_folder(path, wanted, streamed)
    if path.exists():
        check_regular(path)
    if known_suffix(path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"{hide_token(name)}: no such file or folder{_nearby(path)} ({where})")
    return open_hub(hide_token(f"{where} {name}"), name, hub_config, partial(_pick, wanted, where=name), streamed)


def _path_of(name: str, where: str) -> Path:
    """The path that a name stands for, should it be one; raises UserError where it can be none."""
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long; a home that is nobody's; NUL
        raise UserError(f"{where}: {shortened(hide_token(name))!r} is no path: {shortened(str(error))}") from error
    return path


def _whole(path: Path, wanted: WantedSplit, open_it: Callable[[], Source]) -> Source | None:
    if wanted.role == "train":
        return open_it()
    if wanted.required:
        raise UserError(
            f"{path}: holds rows to train on and no split {wanted.name!r} (--dataset_test_split); "
            f"give a folder with train.jsonl and {wanted.name}.jsonl, or --test_split_size",
            "troubleshooting.md#data",
        )
    return None


def _nearby(path: Path) -> str:
    if not path.parent.is_dir():
        return hide_token(f"; nor is there a folder {path.parent}")
    close = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else ""


def _pick(wanted: WantedSplit, available: Iterable[str], *, where: str, hint: str = "") -> str | None:
    available = list(available)
    if wanted.name in available:
        return wanted.name
    if not wanted.required:
        return "validation" if "validation" in available else None
    found = ", ".join(available) or "none"
    raise UserError(
        f"{where}: no split {wanted.name!r}; found {found}{hint} ({wanted.flag})",
        "troubleshooting.md#data",
    )


def _open_folder(folder: Path, wanted: WantedSplit, streamed: bool) -> Source | None:
    if (folder / "state.json").is_file():  # one Dataset.save_to_disk
        return _whole(folder, wanted, lambda: open_saved(folder, streamed))
    if (folder / "dataset_dict.json").is_file():
        names = _splits_of_saved(folder / "dataset_dict.json")
        chosen = _pick(wanted, names, where=str(folder))
        return open_saved(folder / chosen, streamed) if chosen else None
    found = _splits_of_folder(folder)
    listing = sorted(entry.name for entry in folder.iterdir())
    shown = ", ".join(listing[:8]) + (", …" if len(listing) > 8 else "") or "nothing"
    hint = f"; the folder holds {shown}, and a split is a file such as {wanted.name}.jsonl or {wanted.name}.parquet"
    chosen = _pick(wanted, found, where=str(folder), hint=hint)
    if chosen is None:
        return None
    paths = found[chosen]
    if len(paths) > 1 and not all(re.search(r"-\d", path.name) or path.parent.name == chosen for path in paths):
        raise UserError(
            f"{folder}: more than one file could be the split {chosen!r}: {', '.join(path.name for path in paths)}; "
            "give the file itself as --dataset_name"
        )
    return FileSource(tuple(paths), streamed)


def _splits_of_saved(file: Path) -> list[str]:
    try:
        names = parse_json(file.read_text(encoding="utf-8"))["splits"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{file}: not what `DatasetDict.save_to_disk` writes ({shortened(str(error), 300)})") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{file}: 'splits' is not a list of names")
    return names


def _splits_of_folder(folder: Path) -> dict[str, list[Path]]:
    """Files by split: `train.jsonl`, or shards such as `train-00000-of-00002.parquet`, here or in a folder `data`; or
    a folder `train` with its shards."""
    found: dict[str, list[Path]] = {}
    for place in (folder, folder / "data"):
        for path in sorted(place.iterdir()) if place.is_dir() and not found else ():
            suffix = known_suffix(path)
            if suffix and path.is_file():
                split = re.sub(r"-\d+(-of-\d+)?$", "", path.name.removesuffix(suffix))
                found.setdefault(split, []).append(path)
    for inner in sorted(folder.iterdir()) if not found else ():
        paths = [path for path in sorted(inner.iterdir()) if known_suffix(path)] if inner.is_dir() else []
        found |= {inner.name: paths} if paths else {}
    return found


def open_mixture(entries: list[DatasetSource], streamed: bool = False, called: str = "datasets") -> Source:
    """Open several sources as one.

    Args:
        entries: what to open, at least one.
        streamed: rows are read as they are asked for, in one direction.
        called: the flag or key that holds the entries, for messages.

    Raises:
        UserError: one of them is not there, or not to be read.
    """
    parts = []
    for number, entry in enumerate(entries):
        where = f"{called}[{number}]"
        part_of = partial(_open_part, entry, where, streamed)
        source = _open_split(entry.split, f"{where}.split", part_of, streamed)
        assert source is not None  # a required split is there or an error
        columns = None if entry.columns is None else tuple(entry.columns)
        parts.append(Part(source, columns, entry.fraction, entry.seed))
    if streamed and any(entry.fraction is not None for entry in entries):
        return Interleaved(tuple(parts))
    return Mixture(tuple(parts))


def _open_part(entry: DatasetSource, where: str, streamed: bool, split: str) -> Source:
    return _open_entry(replace(entry, split=split), where, streamed)


def _open_split(text: str, where: str, open_one: Callable[[str], Source | None], streamed: bool) -> Source | None:
    """What `open_one` gives for a split; for parts such as train[:1000] and sums such as train+test of what it gives
    for each."""
    if not set(text) & set("[]+"):
        return open_one(text)
    pieces = []
    for name, bounds in parse_split(text, where):
        source = open_one(name)
        if source is None:
            return None
        pieces.append(_slice(source, bounds, where, streamed))
    return pieces[0] if len(pieces) == 1 else Mixture(tuple(Part(piece) for piece in pieces))


def _slice(source: Source, bounds: Bounds, where: str, streamed: bool) -> Source:
    if bounds == Bounds():
        return source
    if streamed and bounds.needs_count:
        raise UserError(
            f"{where}: [{bounds.start}:{bounds.stop}] needs the number of rows, and streamed ones are not counted; "
            "give numbers of rows from the beginning, such as [:1000]"
        )
    return Slice(source, bounds, where)


def _open_entry(entry: DatasetSource, where: str, streamed: bool) -> Source:
    folder, wanted = Path(entry.path).expanduser(), WantedSplit(entry.split, flag=f"{where}.split")
    is_builder = entry.path in BUILDERS and not folder.exists()
    for key, what in (("name", "configurations"), ("revision", "revisions")):
        if getattr(entry, key) is not None and (folder.exists() or is_builder):
            raise UserError(f"{where}.{key}: {entry.path} is a local file or folder, which has no {what}; leave it out")
    base = (folder if folder.is_dir() else Path()) / (entry.data_dir or "")
    files = entry.data_files
    source: Source | None
    if files is not None and (is_builder or folder.is_dir()):
        if isinstance(files, dict):
            if entry.split not in files:
                raise UserError(f"{where}.split: data_files has no split {entry.split!r}; found {', '.join(files)}")
            files = files[entry.split]
        source = FileSource(_local_files(base, files, where), streamed)
    elif is_builder and entry.data_dir is None:
        readable = ", ".join(SUFFIXES)
        raise UserError(f"{where}.data_files is missing; path {entry.path!r} reads files that end in {readable}")
    elif is_builder or folder.exists():
        source = open_named(str(folder if folder.is_file() else base), None, wanted, streamed, f"{where}.path")
    else:
        options = {"data_dir": entry.data_dir, "data_files": files, "revision": entry.revision}
        given = {key: value for key, value in options.items() if value is not None}
        if given:
            pick = partial(_pick, wanted, where=entry.path)
            source = open_hub(f"{where}.path {entry.path}", entry.path, entry.name, pick, streamed, **given)
        else:
            source = open_named(entry.path, entry.name, wanted, streamed, f"{where}.path")
    assert source is not None  # a required split is there or an error
    return source


def _local_files(base: Path, files: str | list[str], where: str) -> tuple[Path, ...]:
    """The files that names and patterns with `*` stand for."""
    found: list[Path] = []
    for name in [files] if isinstance(files, str) else files:
        is_pattern = any(character in name for character in "*?[") and not (base / name).exists()
        matching = sorted(Path(path) for path in glob.glob(str(base / name), recursive=True)) if is_pattern else []
        if is_pattern and not matching:
            raise UserError(f"{where}.data_files: no file is like {base / name}")
        found += matching or [base / name]
    return tuple(found)
