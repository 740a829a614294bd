"""Files of rows as bytes and lines: plain or gzip, with limits on what a single line or document may need of memory."""

import codecs
import gzip
import io
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from posttrain.errors import UserError

MAX_LINE = 2**27  # bytes: a line (or a field of a table) is held in memory several times over
MAX_DOCUMENT = 2**30  # bytes of a .json file, which is read as a whole

# How files begin that are named as if they were text, and what they are.
_MAGIC = {
    b"\x1f\x8b": "gzip; its name has to end in .gz",
    b"\x28\xb5\x2f\xfd": "zstd, which is not read; unpack it: zstd -d",
    b"\xfd7zXZ\x00": "xz, which is not read; unpack it: xz -d",
    b"BZh": "bzip2, which is not read; unpack it: bzip2 -d",
    b"PK\x03\x04": "a zip archive, which is not read; unpack it: unzip",
    b"PAR1": "Parquet; its name has to end in .parquet",
    b"ARROW1": "Arrow; save the data set as .parquet or .jsonl, or name the folder of save_to_disk",
    codecs.BOM_UTF32_LE: "UTF-32 text; convert it: iconv -f UTF-32 -t UTF-8",
    codecs.BOM_UTF16_LE: "UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8",
    codecs.BOM_UTF16_BE: "UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8",
}


def check_regular(path: Path) -> None:
    """Raises UserError where a path is there and no file: a pipe or a device would be waited for, or never end."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe, a device or a socket"
        raise UserError(f"{path}: {what}, not a file of rows; write the rows to a file")


def open_file(path: Path) -> BinaryIO:
    """A file's bytes, unpacked.

    Raises:
        UserError: it is no regular file.
        OSError: it cannot be opened.
    """
    check_regular(path)
    if not path.name.endswith(".gz"):
        return path.open("rb")
    return io.BufferedReader(cast(io.RawIOBase, gzip.open(path)))  # which finds lines much faster


def not_utf8(path: Path, line: int, error: UnicodeDecodeError) -> UserError:
    """The error of a file with bytes that are no UTF-8."""
    with open_file(path) as stream:
        head = stream.read(8)
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return UserError(f"{path}: not UTF-8 text but {kind}")
    byte = error.object[error.start]
    return UserError(
        f"{path} line {line}: not UTF-8 text (byte 0x{byte:02x}); "
        f"convert it, for instance: iconv -f WINDOWS-1252 -t UTF-8 {path.name} > utf8_{path.name}"
    )


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers, from 1; each with its end, the first without its byte order mark.

    Raises:
        UserError: a line is not UTF-8, or longer than MAX_LINE.
        OSError, EOFError, zlib.error: the file cannot be read, or is not whole.
    """
    with open_file(path) as stream:
        number = 0
        while raw := stream.readline(MAX_LINE + 1):
            number += 1
            if len(raw) > MAX_LINE:
                raise UserError(f"{path} line {number}: longer than {MAX_LINE // 2**20} MiB; divide it or mend it")
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise not_utf8(path, number, error) from error
            yield number, line


def whole_text(path: Path) -> str:
    """A file's text, without a byte order mark.

    Raises:
        UserError: it is not UTF-8, or larger than MAX_DOCUMENT.
        OSError, EOFError, zlib.error: the file cannot be read, or is not whole.
    """
    with open_file(path) as stream:
        data = stream.read(MAX_DOCUMENT + 1).removeprefix(codecs.BOM_UTF8)
    if len(data) > MAX_DOCUMENT:
        raise UserError(
            f"{path}: more than {MAX_DOCUMENT // 2**30} GiB in one JSON document, which is read as a whole; write one "
            "row a line, as .jsonl"
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(path, data.count(b"\n", 0, error.start) + 1, error) from error


def first_letter(path: Path) -> str:
    """The first character of a file that is no white space; "" where there is none."""
    with open_file(path) as stream:
        data = stream.read(2**16).removeprefix(codecs.BOM_UTF8)
        while data:
            if data.strip():
                return data.strip()[:1].decode("latin-1")
            data = stream.read(2**20)
    return ""
