"""How large a source is, told without reading it through."""

from pathlib import Path
from typing import Any

from posttrain.data.sources import FileSource, HeldOut, Mixture, Source, TableSource
from posttrain.data.streamed_sources import FirstRows
from posttrain.errors import UserError

_LINES_FOR_SIZE = 2000


def bytes_of(source: Source) -> int | None:
    """Bytes of the files of a source; None where it has none of its own."""
    if isinstance(source, FileSource):
        return sum(path.stat().st_size for path in source.paths if path.is_file())
    if isinstance(source, Mixture):
        sizes = [bytes_of(part.source) for part in source.parts]
        return sum(size or 0 for size in sizes)
    inner = getattr(source, "source", None)
    return None if inner is None else bytes_of(inner)


def expected_rows(source: Source) -> int | None:
    """About how many rows a source has, without reading it through; None where that cannot be told.

    Args:
        source: of whatever kind.
    """
    if isinstance(source, TableSource):
        return len(source.table)
    if isinstance(source, FileSource):
        return sum(_rows_of_file(path) for path in source.paths)
    if isinstance(source, Mixture):
        return _rows_of_mixture(source)
    if isinstance(source, HeldOut | FirstRows):
        total = expected_rows(source.source)
        size = source.number if isinstance(source, FirstRows) else source.size
        if total is None:
            return None
        part = min(total, round(size) if size >= 1 else -int(-size * total // 1))
        return part if source.held_out else total - part
    return None


def _rows_of_mixture(source: Mixture) -> int | None:
    counts = [expected_rows(part.source) for part in source.parts]
    if any(count is None for count in counts):
        return None
    known = [count for count in counts if count is not None]
    fractions = [part.fraction for part in source.parts]
    if all(fraction is None for fraction in fractions):
        return sum(known)
    whole = sum(fraction or 0.0 for fraction in fractions)
    shares = [(fraction or 0.0) / whole for fraction in fractions]
    return round(min(count / share for count, share in zip(known, shares, strict=True) if share))


def _rows_of_file(path: Path) -> int:
    """Of Parquet as it says itself; of others by the length of the first lines (of compressed ones, as they are)."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        try:
            return int(pyarrow.parquet.read_metadata(path).num_rows)
        except (pyarrow.ArrowException, OSError, ValueError):
            return 0  # reading it says what is wrong
    import gzip

    is_packed = path.suffix == ".gz"
    try:
        with path.open("rb") as raw:
            file: Any = gzip.GzipFile(fileobj=raw) if is_packed else raw
            lines = 0
            for _ in zip(range(_LINES_FOR_SIZE), file, strict=False):
                lines += 1
            read = raw.tell() if is_packed else file.tell()
            size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    return lines if read >= size else round(lines * size / max(1, read))
