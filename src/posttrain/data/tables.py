"""Tables of the `datasets` library: saved to disk, of the hub, and read from the hub row by row."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from posttrain.data.digests import file_digests
from posttrain.data.json_text import shortened
from posttrain.data.sources import Source, TableSource, combined_digest, files_stamp
from posttrain.data.streamed_sources import StreamedTable
from posttrain.errors import UserError
from posttrain.hub import PAGE, explain, hide_token

Pick = Callable[[Iterable[str]], str | None]


def open_saved(folder: Path, streamed: bool) -> Source:
    """A folder written by `Dataset.save_to_disk`.

    Args:
        folder: of one split.
        streamed: do not read it through to see whether it has changed.

    Raises:
        UserError: it cannot be loaded.
    """
    import datasets

    try:
        table = datasets.load_from_disk(str(folder))
        if len(table):
            table.data.validate()
    except Exception as error:  # whatever is wrong with one of its files, it is the named folder that is at fault
        reason = shortened(str(error), 300) or type(error).__name__
        raise UserError(f"{folder}: not a data set that `datasets` can load ({reason})") from error
    paths = sorted(Path(file["filename"]) for file in table.cache_files)
    if streamed:
        return TableSource(str(folder), table, combined_digest("saved", files_stamp(paths)), dict.fromkeys(paths))
    digests = file_digests(paths)
    fingerprint = combined_digest("saved", combined_digest(*digests))
    return TableSource(str(folder), table, fingerprint, dict(zip(paths, digests, strict=True)))


def open_hub(
    where: str, name: str, hub_config: str | None, pick: Pick, streamed: bool, **options: Any
) -> Source | None:
    """One split of a data set of the hub.

    Args:
        where: what the user called it, for messages: "--dataset_name trl-lib/Capybara".
        name: its id.
        hub_config: which of its configurations.
        pick: told the names of the splits, returns the one to take, or None.
        streamed: read rows as they are asked for, and download nothing else.
        **options: data_dir, data_files and revision, for `datasets.load_dataset`.

    Returns:
        The split, or None where `pick` takes none.

    Raises:
        UserError: it is not there, not to be read, or has no such configuration or split.
    """
    import datasets

    try:
        if streamed:
            builder = datasets.load_dataset_builder(name, hub_config, **options)
            loaded, commit = builder.as_streaming_dataset(), builder.hash
        else:
            loaded = datasets.load_dataset(name, hub_config, **options)
    except Exception as error:  # the libraries raise of every kind, and whatever it is, this name cannot be loaded
        raise _explained(error, where, name) from error
    chosen = pick(loaded)
    if chosen is None:
        return None
    if streamed:
        given = (name, hub_config, chosen, sorted(options.items()))
        fingerprint = combined_digest("hub", commit, given)
        return StreamedTable(f"{name} ({chosen})", loaded[chosen], fingerprint, hub=(name, commit))
    fingerprint = combined_digest("hub", loaded[chosen]._fingerprint)
    return TableSource(f"{name} ({chosen})", loaded[chosen], fingerprint, hub=(name, _commit_of(loaded[chosen])))


def _commit_of(table: Any) -> str | None:
    """The commit of the hub that a table was loaded from, after which `datasets` names the folder that it is kept in;
    None where none is named."""
    names = (name for file in table.cache_files for name in Path(file["filename"]).parts)
    return next((name for name in names if re.fullmatch("[0-9a-f]{40}", name)), None)


def _explained(error: Exception, where: str, name: str) -> UserError:
    about_hub = explain(error, where)
    if about_hub is not None:
        return about_hub
    text = str(error).strip()
    names = re.search(r"(?:available configs|Available): \[(.*?)\]", text)
    if names:
        first = text.splitlines()[0].partition("Available")[0].rstrip(". ")
        problem = f"{_in_our_words(first)}; give one of them: {names[1].replace(chr(39), '')} (--dataset_config)"
    elif "scripts are no longer supported" in text:
        problem = (
            "its rows are made by a Python script, which `datasets` no longer runs; the hub may have them as Parquet "
            f"files: `hf download {name} --repo-type dataset --revision refs/convert/parquet --local-dir FOLDER`, then "
            "--dataset_name FOLDER/default (or the configuration that you want)"
        )
    elif "DataFilesNotFound" in type(error).__name__ or "EmptyDataset" in type(error).__name__:
        problem = "the repository holds no data files (JSON, CSV, Parquet) where they are looked for"
    else:
        problem = f"cannot be loaded: {text.splitlines()[0] if text else type(error).__name__}"
    return UserError(hide_token(f"{where}: {problem}"), PAGE)


def _in_our_words(first: str) -> str:
    unknown = re.match(r"BuilderConfig '(.*)' not found", first)
    return f"it has no configuration {unknown[1]!r}" if unknown else "it comes in several configurations"
