"""What a source of rows was read from, so that it can be known again: files and their hashes, commits of the hub."""

from pathlib import Path
from typing import Any

from posttrain.data.slices import Slice
from posttrain.data.sources import FileSource, HeldOut, Mixture, Source, TableSource
from posttrain.data.streamed_sources import FirstRows, Interleaved, StreamedTable


def origin_of(source: Source) -> dict[str, Any]:
    """Of a source whose digest has been asked for.

    Args:
        source: may be made of others.

    Returns:
        Plain data: `files`, by path their size in bytes and sha256 (None where they are too large to be read through
        beforehand, since rows are streamed), and `hub`, the ids of data sets there and their commits (None where that
        is not known).
    """
    files: dict[str, Any] = {}
    hub: dict[str, str | None] = {}
    for part in _undivided(source):
        if isinstance(part, FileSource):
            files |= {str(path): _file(path, part.digests.get(path)) for path in part.paths}
        elif isinstance(part, TableSource):
            files |= {str(path): _file(path, digest) for path, digest in part.digests.items()}
        if isinstance(part, TableSource | StreamedTable) and part.hub is not None:
            hub[part.hub[0]] = part.hub[1]
    return {"files": files, "hub": hub}


def _file(path: Path, sha256: str | None) -> dict[str, Any]:
    return {"sha256": sha256, "size": path.stat().st_size}


def _undivided(source: Source) -> list[Source]:
    if isinstance(source, HeldOut | FirstRows | Slice):
        return _undivided(source.source)
    if isinstance(source, Mixture | Interleaved):
        return [one for part in source.parts for one in _undivided(part.source)]
    return [source]
