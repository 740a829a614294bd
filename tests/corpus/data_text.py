"""Broken files of text: bytes, encodings, JSON, CSV and gzip."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path

from helpers_corpus import Case, Write, bad, fine, lines, raw

ROW = '{"text": "a"}\n'
A, B = "a<|end|>", "b<|end|>"
LONG = "x" * 10_000_000


def packed(content: bytes | str, name: str = "rows.jsonl.gz", cut: int | None = None) -> Write:
    data = gzip.compress(content.encode() if isinstance(content, str) else content, mtime=0)
    return raw(data[:cut], name)


def bomb(name: str, letter: bytes, start: bytes = b"") -> Write:
    """A gibibyte of one letter in one line, packed into a megabyte."""

    def write(folder: Path) -> Path:
        path = folder / name
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.write(start)
            for _ in range(BOMB_BLOCKS):
                file.write(letter * (2**20 // len(letter)))
        return path

    return write


BOMB_BLOCKS = 64  # mebibytes; the limits are lowered to a quarter of it by the test


def nested(depth: int, open_: str = "[", close: str = "]") -> str:
    return '{"text": "a", "more": ' + open_ * depth + close * depth + "}"


CASES: dict[str, Case] = {
    # Bytes and encodings
    "nothing": bad("sft", raw(b""), "rows.jsonl", "empty"),
    "white space": bad("sft", raw(b" \n\t\n\r\n"), "rows.jsonl", "empty"),
    "a byte order mark alone": bad("sft", raw(b"\xef\xbb\xbf"), "rows.jsonl", "empty"),
    "a byte order mark": fine("sft", raw(b"\xef\xbb\xbf" + ROW.encode()), [A]),
    "two byte order marks": bad("sft", raw(b"\xef\xbb\xbf\xef\xbb\xbf" + ROW.encode()), "line 1"),
    "a byte order mark on line 2": bad("sft", raw(ROW.encode() + b"\xef\xbb\xbf" + ROW.encode()), "line 2"),
    "CRLF": fine("sft", raw(b'{"text": "a"}\r\n{"text": "b"}\r\n'), [A, B]),
    "no end of the last line": fine("sft", raw('{"text": "a"}\n{"text": "b"}'), [A, B]),
    "blank lines between": fine("sft", raw('\n{"text": "a"}\n\n \n{"text": "b"}\n\n'), [A, B]),
    "a line separator within a text": fine("sft", raw('{"text": "a\u2028b"}\n'), ["a\u2028b<|end|>"]),
    "a form feed within a text": fine("sft", lines({"text": "a\fb"}), ["a\fb<|end|>"]),
    "CR alone": bad("sft", raw(b'{"text": "a"}\r{"text": "b"}\r'), "line 1", "broken JSON"),
    "UTF-16": bad("sft", raw(ROW.encode("utf-16")), "rows.jsonl", "UTF-16", "iconv"),
    "UTF-16 without a mark": bad("sft", raw(ROW.encode("utf-16-le")), "line 1", "broken JSON"),
    "UTF-16, the other order": bad("sft", raw(b"\xfe\xff" + ROW.encode("utf-16-be")), "rows.jsonl", "UTF-16"),
    "UTF-32": bad("sft", raw(ROW.encode("utf-32")), "rows.jsonl", "UTF-32"),
    "latin-1": bad("sft", raw(ROW.encode() + '{"text": "café"}\n'.encode("latin-1")), "line 2", "not UTF-8", "0xe9"),
    "an overlong encoding": bad("sft", raw(b'{"text": "\xc0\xaf"}\n'), "line 1", "not UTF-8"),
    "a surrogate in bytes": bad("sft", raw(b'{"text": "\xed\xa0\x80"}\n'), "line 1", "not UTF-8"),
    "a character cut off": bad("sft", raw(b'{"text": "\xf0\x9f\x98"}\n'), "line 1", "not UTF-8"),
    "NUL bytes": bad("sft", raw(b"\0" * 4096), "line 1", "broken JSON"),
    "a hole of NUL bytes between rows": bad("sft", raw(ROW.encode() + b"\0" * 512 + ROW.encode()), "line 2"),
    "an executable": bad("sft", raw(b"\x7fELF\x02\x01\x01" + b"\xff" * 99), "line 1", "not UTF-8"),
    # Kinds of files under a wrong name
    "gzip without .gz": bad("sft", packed(ROW, "rows.jsonl"), "gzip", ".gz"),
    ".gz without gzip": bad("sft", raw(ROW, "rows.jsonl.gz"), "rows.jsonl.gz", "gzip"),
    "zstd": bad("sft", raw(b"\x28\xb5\x2f\xfd\xff\xff"), "zstd -d"),
    "xz": bad("sft", raw(lzma.compress(ROW.encode())), "xz -d"),
    "bzip2": bad("sft", raw(bz2.compress(ROW.encode())), "bzip2 -d"),
    "zip": bad("sft", raw(b"PK\x03\x04\xff\xff"), "unzip"),
    "a name ending in .zst": bad("sft", raw(ROW, "rows.jsonl.zst"), "rows.jsonl.zst", "cannot tell"),
    "a name ending in .txt": bad("sft", raw(ROW, "rows.txt"), "rows.txt", "cannot tell"),
    "a name without an ending": bad("sft", raw(ROW, "rows"), "rows", "cannot tell"),
    "upper case .JSONL": bad("sft", raw(ROW, "ROWS.JSONL"), "ROWS.JSONL", "cannot tell"),
    "CSV named .jsonl": bad("sft", raw("text\na\n"), "line 1", "broken JSON"),
    "JSONL named .csv": bad("sft", raw(ROW * 2, "rows.csv"), "wrong columns"),
    "JSONL named .json": fine("sft", raw(ROW + '{"text": "b"}', "rows.json"), [A, B]),
    "HTML named .jsonl": bad("sft", raw("<!DOCTYPE html><html></html>\n"), "line 1", "broken JSON", "<!DOCTYPE"),
    "a pointer of git LFS": bad("sft", raw("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "line 1"),
    "YAML named .json": bad("sft", raw("- text: a\n", "rows.json"), "line 1", "broken JSON"),
    # gzip
    "gzip cut off": bad("sft", packed(ROW * 999, cut=-20), "not a whole gzip"),
    "gzip cut to its head": bad("sft", packed(ROW, cut=5), "not a whole gzip"),
    "gzip with garbage behind it": bad("sft", raw(gzip.compress(ROW.encode()) + b"xyz", "r.jsonl.gz"), "gzip"),
    "gzip with a bit flipped": bad(
        "sft", raw(gzip.compress(ROW.encode())[:-8] + b"\1" * 8, "r.jsonl.gz"), "not a whole gzip"
    ),
    "gzip in two pieces": fine("sft", raw(gzip.compress(ROW.encode()) * 2, "r.jsonl.gz"), [A, A]),
    "gzip of nothing": bad("sft", packed(b""), "empty"),
    "a bomb of zeros": bad("sft", bomb("rows.jsonl.gz", b"\0"), "line 1", "longer than"),
    "a bomb in a text": bad("sft", bomb("rows.jsonl.gz", b"x", b'{"text": "'), "line 1", "longer than"),
    "a bomb of JSON": bad("sft", bomb("rows.json.gz", b" ", b"["), "rows.json.gz", "read as a whole"),
    "a bomb of JSON lines": bad("sft", bomb("rows.json.gz", b"{"), "line 1", "longer than"),
    "a bomb of CSV": bad("sft", bomb("rows.csv.gz", b"x", b"text\n"), "line 2", "longer than"),
    "a bomb of CSV in quotes": bad("sft", bomb("rows.csv.gz", b"x" * 1023 + b"\n", b'text\n"'), "broken CSV", "limit"),
    # JSON
    "a trailing comma": bad("sft", raw('{"text": "a",}\n'), "line 1", "broken JSON"),
    "a comma between lines": bad("sft", raw('{"text": "a"},\n{"text": "b"}\n'), "line 1", "broken JSON"),
    "single quotes": bad("sft", raw("{'text': 'a'}\n"), "line 1", "broken JSON"),
    "Python's None": bad("sft", raw('{"text": None}\n'), "line 1", "broken JSON"),
    "a comment": bad("sft", raw('// rows\n{"text": "a"}\n'), "line 1", "broken JSON"),
    "a line cut off": bad("sft", raw(ROW + '{"text": "b'), "line 2", "broken JSON"),
    "a row over two lines": bad("sft", raw('{"text":\n"a"}\n'), "line 1", "broken JSON"),
    "two rows on a line": bad("sft", raw('{"text": "a"} {"text": "b"}\n'), "line 1", "broken JSON"),
    "a bare line break within a text": bad("sft", raw('{"text": "a\nb"}\n'), "line 1", "broken JSON"),
    "a bare control character": bad("sft", raw('{"text": "a\x01b"}\n'), "line 1", "broken JSON"),
    "an unknown escape": bad("sft", raw('{"text": "\\x41"}\n'), "line 1", "broken JSON"),
    "a broken unicode escape": bad("sft", raw('{"text": "\\u12"}\n'), "line 1", "broken JSON"),
    "a key twice": bad("sft", raw('{"text": "a", "text": "b"}\n'), "line 1", "'text' stands twice"),
    "a key twice, further in": bad(
        "sft",
        raw('{"messages": [{"role": "user", "role": "assistant", "content": "a"}]}\n'),
        "line 1",
        "'role' stands twice",
    ),
    "a key of 10 MB twice": bad("sft", raw(f'{{"{LONG}": 1, "{LONG}": 2}}\n'), "line 1", "stands twice"),
    "a number of 5,000 digits": bad("sft", raw(ROW + '{"text": ' + "9" * 5000 + "}\n"), "line 2", "digits"),
    "lists 100,000 deep": bad("sft", lines(nested(100_000)), "line 1", "deep"),
    "mappings 100,000 deep": bad("sft", lines(nested(100_000, '{"a":', "}").replace('{"a":}', "{}")), "line 1"),
    "lists 900 deep": bad("sft", lines(nested(900)), "line 1", "deep"),
    "lists 90 deep": fine("sft", lines(nested(90)), [A]),
    "100,000 open brackets": bad("sft", raw('{"text": ' + "[" * 100_000), "line 1", "deep"),
    "NaN for a text": bad("sft", raw('{"text": NaN}\n'), "line 1", "wrong type", "NaN"),
    "NaN beside a text": fine("sft", raw('{"text": "a", "score": NaN}\n'), [A]),
    "Infinity for a text": bad("sft", raw('{"text": Infinity}\n'), "line 1", "wrong type"),
    "a list for a row": bad("sft", raw('["a"]\n[]\n', "rows.jsonl"), "line 1", "must be an object"),
    "a text for a row": bad("sft", raw('"a"\n'), "line 1", "must be an object"),
    "a number for a row": bad("sft", raw("1\n"), "line 1", "must be an object"),
    "null for a row": bad("sft", raw(ROW + "null\n"), "line 2", "must be an object"),
    "a text of 10 MB for a row": bad("sft", raw(json.dumps(LONG) + "\n"), "line 1", "must be an object"),
    "10 MB that are no JSON": bad("sft", raw(LONG), "line 1", "broken JSON"),
    "an empty object": bad("sft", raw("{}\n"), "line 1", "none with a value"),
    "a list that is not closed": bad("sft", raw('[{"text": "a"}, ', "rows.json"), "line 1", "broken JSON"),
    "a list with a trailing comma": bad("sft", raw('[{"text": "a"},\n]', "rows.json"), "broken JSON"),
    "a list of numbers": bad("sft", raw("[1, 2]", "rows.json"), "row 1", "must be an object"),
    "a list of lists": bad("sft", raw('[{"text": "a"}, []]', "rows.json"), "row 2", "must be an object"),
    "an empty list": bad("sft", raw("[]", "rows.json"), "empty"),
    "columns in place of rows": bad("sft", raw('{"text": ["a", "b"]}', "rows.json"), "wrong type", "'text'"),
    "rows under a key": bad("sft", raw('{"data": [{"text": "a"}]}', "rows.json"), "found the columns data"),
    "a list after white space": fine("sft", raw('\n\n [{"text": "a"}]', "rows.json"), [A]),
    "a list with a byte order mark": fine("sft", raw(b'\xef\xbb\xbf[{"text": "a"}]', "rows.json"), [A]),
    # CSV
    "a header alone": bad("sft", raw("text\n", "rows.csv"), "empty"),
    "CSV of blank lines": bad("sft", raw("\n\n\n", "rows.csv"), "empty"),
    "a row too short": bad("sft", raw("text,more\na,1\nb\n", "rows.csv"), "line 3", "fewer"),
    "a row too long": bad("sft", raw("text\na\nb,c\n", "rows.csv"), "line 3", "more", "quotes"),
    "a quote that is not closed": bad("sft", raw('text\n"a\nb\nc\n', "rows.csv"), "broken CSV"),
    "a quote within a field": bad("sft", raw('text\n"a" b\n', "rows.csv"), "line 2", "broken CSV"),
    "two columns of one name": bad("sft", raw("text,text\na,b\n", "rows.csv"), "two columns", "'text'"),
    "semicolons": bad("sft", raw("text;more\na;b\n", "rows.csv"), "wrong columns", "text;more"),
    "tabs": bad("sft", raw("text\tmore\na\tb\n", "rows.csv"), "wrong columns"),
    "no header": bad("sft", raw("a\nb\n", "rows.csv"), "wrong columns"),
    "a header with spaces": bad("sft", raw(" text \na\n", "rows.csv"), "wrong columns"),
    "a quoted line break": fine("sft", raw('text\n"a\nb"\n', "rows.csv"), ["a\nb<|end|>"]),
    "a quoted CRLF": fine("sft", raw('text\r\n"a\r\nb"\r\n', "rows.csv"), ["a\r\nb<|end|>"]),
    "CR alone in CSV": fine("sft", raw("text\ra\rb\r", "rows.csv"), [A, B]),
    "CSV with a byte order mark": fine("sft", raw(b"\xef\xbb\xbftext\na\n", "rows.csv"), [A]),
    "CSV in latin-1": bad("sft", raw("text\ncafé\n".encode("latin-1"), "rows.csv"), "line 2", "not UTF-8"),
    "CSV in UTF-16": bad("sft", raw("text\na\n".encode("utf-16"), "rows.csv"), "UTF-16"),
    "NUL in CSV": fine("sft", raw("text\na\0b\n", "rows.csv"), ["a\0b<|end|>"]),
    "messages as text in CSV": bad("sft", raw('messages\n"[1]"\n', "rows.csv"), "line 2", "list of messages"),
    "a margin in CSV": bad("preference", raw("prompt,chosen,rejected,margin\na,b,c,1\n", "rows.csv"), "margin"),
}
