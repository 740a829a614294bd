"""What fuzzing feeds to the readers of data, templates, flags and YAML; what comes of it is a UserError, or sense."""

from __future__ import annotations

import gzip
import io
import json
import tempfile
import warnings
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
from helpers_data import MARKED_TEMPLATE, make_tokenizer
from hypothesis import strategies as st

from posttrain.config import METHODS, from_mapping, parse_command_line
from posttrain.config.yaml_files import load_yaml
from posttrain.data.build import check_rows
from posttrain.data.preference import tokenise_preference
from posttrain.data.problems import Problems
from posttrain.data.prompts import tokenise_prompts
from posttrain.data.readers import Row, read_rows
from posttrain.data.reward import tokenise_reward
from posttrain.data.sft import tokenise_sft
from posttrain.data.tables import open_saved
from posttrain.data.tokenised import Options
from posttrain.errors import UserError
from posttrain.inspection.rows import describe_columns, duplicates

LONGEST_MESSAGE = 30_000
TOKENISE: dict[str, Any] = {
    "sft": tokenise_sft,
    "preference": tokenise_preference,
    "reward": tokenise_reward,
    "prompts": tokenise_prompts,
}
GOOD = [
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "é"}], "tools": [{"name": "f"}]},
    {"prompt": "a", "completion": "b", "chat_template_kwargs": {"x": 1}},
    {"prompt": [{"role": "user", "content": "a"}], "chosen": [{"role": "assistant", "content": "b"}],
     "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "c"}]}], "margin": 0.5},
    {"text": "a\nb"}, {"input_ids": [7, 8, 9], "labels": [-100, 8, 9]},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
]  # fmt: skip
NAMES = sorted(
    {name for row in GOOD for name in row}
    | {"role", "content", "from", "value", "type", "text", "tool_calls", "name", "completion_mask", "assistant_masks"}
)


def _written(rows: list[Any], suffix: str) -> bytes:
    if suffix == ".parquet":
        sink = io.BytesIO()
        pyarrow.parquet.write_table(pa.Table.from_pylist([{"text": "a", "n": 1}, {"text": None, "n": 2}]), sink)
        return sink.getvalue()
    text = {
        ".jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        ".json": json.dumps(rows, indent=1),
        ".csv": 'text,prompt\na,"b\n""c"""\nd,e\n',
    }[suffix.removesuffix(".gz")]
    return gzip.compress(text.encode(), mtime=0) if suffix.endswith(".gz") else text.encode()


@st.composite
def damaged(draw: Any, suffixes: tuple[str, ...]) -> tuple[str, bytes]:
    """A sound file with bytes changed, cut out, doubled or put in; now and then one of any bytes."""
    suffix = draw(st.sampled_from(suffixes))
    if draw(st.integers(0, 9)) == 0:
        return suffix, draw(st.binary(max_size=60))
    data = bytearray(_written(draw(st.lists(st.sampled_from(GOOD), min_size=1, max_size=3)), suffix))
    tokens = [b'"', b"{", b"}", b"[", b",", b"\n", b"\r", b"\\", b"\\ud800", b"\0", b"\xff", b"NaN", b"9" * 30, b"null"]
    for _ in range(draw(st.integers(0, 5))):
        where = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 12))
        kind = draw(st.sampled_from(["change", "cut", "double", "insert", "end"]))
        if kind == "change":
            data[where : where + 1] = draw(st.binary(min_size=1, max_size=2))
        elif kind == "cut":
            del data[where : where + length]
        elif kind == "double":
            data[where:where] = data[where : where + 2 * length]
        elif kind == "insert":
            data[where:where] = draw(st.sampled_from(tokens))
        else:
            del data[where:]
    return suffix, bytes(data)


def read_file(given: tuple[str, bytes]) -> None:
    """Only a UserError that names the file; else rows with places."""
    suffix, data = given
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{suffix}"
        path.write_bytes(data)
        try:
            rows = list(islice(read_rows(path), 100))
        except UserError as error:
            assert str(path) in str(error) and len(str(error)) < LONGEST_MESSAGE
            return
        assert rows and all(isinstance(row.columns, dict) and row.place.startswith(str(path)) for row in rows)
        understand(rows)


@st.composite
def changes(draw: Any) -> list[tuple[int, int, bytes]]:
    """Where bytes of a file are replaced, how many, and by which."""
    return draw(st.lists(st.tuples(st.integers(0, 900), st.integers(0, 40), st.binary(max_size=9)), max_size=4))


def read_saved(given: tuple[str, list[tuple[int, int, bytes]]]) -> None:
    """Only a UserError; else rows."""
    kind, edits = given
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "saved"
        datasets.Dataset.from_list([{"text": "a", "n": 1}, {"text": None, "n": 2}]).save_to_disk(str(folder))
        path = next(path for path in sorted(folder.iterdir()) if kind in path.name)
        data = bytearray(path.read_bytes())
        for start, length, new in edits:
            data[start % len(data) : start % len(data) + length] = new
        path.write_bytes(bytes(data))
        try:
            source = open_saved(folder, streamed=False)
            source.digest()
            understand(list(source.rows()))
        except UserError as error:
            assert len(str(error)) < LONGEST_MESSAGE


LETTERS = st.text(st.characters(), max_size=8) | st.sampled_from(
    ["", " ", "a", "user", "assistant", "system", "{}", "\ud800", "\0"]
)
LEAVES = st.none() | st.booleans() | st.integers(-3, 300) | st.integers() | st.floats() | LETTERS
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES) | LETTERS, inner, max_size=4),
    max_leaves=12,
)


@st.composite
def rows(draw: Any) -> list[dict[str, Any]]:
    """Rows of sound formats with some of their values exchanged, and rows of anything."""
    made = []
    for _ in range(draw(st.integers(1, 3))):
        if draw(st.integers(0, 3)) == 0:
            made.append(draw(st.dictionaries(st.sampled_from(NAMES) | LETTERS, VALUES, max_size=5)))
            continue
        row = json.loads(json.dumps(draw(st.sampled_from(GOOD))))
        for _ in range(draw(st.integers(0, 2))):
            at: Any = row
            while True:
                key = draw(st.sampled_from(list(at) if isinstance(at, dict) else list(range(len(at)))))
                if not isinstance(at[key], dict | list) or not at[key] or draw(st.booleans()):
                    break
                at = at[key]
            at[key] = draw(VALUES)
        made.append(row)
    return made


_TOKENIZERS: list[Any] = []


def tokenizers() -> list[Any]:
    """One whose template marks what the assistant says, and one whose template does not."""
    if not _TOKENIZERS:
        _TOKENIZERS.extend([make_tokenizer(), make_tokenizer(MARKED_TEMPLATE)])
    return _TOKENIZERS


def understand(found: list[Row]) -> None:
    """Only problems of rows, with a short message; what is tokenised is whole."""
    describe_columns(found)
    duplicates(found)
    for kind, tokenise in TOKENISE.items():
        problems = Problems()
        options = Options(max_length=20, keep_end=kind == "prompts", assistant_only=len(found) == 2)
        check_rows(found, kind, options, problems)
        result = tokenise(tokenizers()[len(found) % 2], found, options, 0)
        for one in (problems, result.problems):
            try:
                one.raise_if_any("rows", "some")
            except UserError as error:
                assert len(str(error)) < LONGEST_MESSAGE
        assert len({len(values) for values in result.columns.values()}) <= 1
        for name in (name for name in result.columns if name.endswith("_mask")):
            ids = result.columns[name.replace("loss_mask", "input_ids").replace("_mask", "_ids")]
            assert [len(mask) for mask in result.columns[name]] == [len(one) for one in ids]


def understand_rows(given: list[dict[str, Any]]) -> None:
    """As understand, of rows in memory."""
    understand([Row(f"rows.jsonl line {number}", row) for number, row in enumerate(given, 1)])


PIECES = (
    "{{ messages }} {{ messages[0].content }} {% for m in messages %} {% endfor %} {% if add_generation_prompt %} "
    "{% endif %} {% generation %} {% endgeneration %} {{ m.role }} {{ ''.__class__.__mro__ }} {% set x = 1 %} "
    "{{ x ** 9 }} {% macro f(a) %} {% endmacro %} {{ f(1) }} {{ raise_exception('no') }} {% include 'a' %} {{ 1/0 }} "
    "{{ tools|tojson }} {% break %} {{ 'a' * 999 }} {{ range(99)|list }} {# #} {{ lipsum() }} {{ namespace(a=1).a }} "
    "{{- -}} {% {{ }} %} {{ cycler }} {{ self }} {{ x.y.z }} {{ strftime_now('%Y') }} {% raw %} {% endraw %} "
    "{% else %} {{ m|length }}"
).split("} ")
TEMPLATE = st.lists(st.sampled_from([piece + "}" for piece in PIECES]) | LETTERS, max_size=6).map(" ".join)


def render_template(text: str) -> None:
    """Only what may be said of a template."""
    from posttrain.data import template

    template._seen.discard(text)
    tokenizer = make_tokenizer(text)
    found = [Row("rows.jsonl line 1", GOOD[0]), Row("rows.jsonl line 2", GOOD[5])]
    for assistant_only in (False, True):
        try:
            tokenise_sft(tokenizer, found, Options(50, False, assistant_only=assistant_only), 0)
        except UserError as error:
            assert len(str(error)) < LONGEST_MESSAGE


def flag_names() -> list[str]:
    """Of all methods."""
    return sorted({f"--{name}" for method in METHODS.values() for name in method.__dataclass_fields__})


WORDS = st.lists(
    st.sampled_from(flag_names()) | LETTERS | st.sampled_from(["1", "1e-3", "none", "[1]", "true"]), max_size=6
)


def read_words(given: tuple[str, list[str]]) -> None:
    """Only a UserError; asking for help prints it."""
    method, words = given
    if {"-h", "--help"} & set(words):
        return
    try:
        parse_command_line(method, words)
    except UserError as error:
        assert len(str(error)) < LONGEST_MESSAGE


YAML_PIECES = st.sampled_from(
    ["a: 1", "sft:", "  beta: 0.1", "- x", "&a [*a]", "*a", "!!python/object:os.system x", "<<: *a", "? [1]", ": ",
     "\t", "---", "...", "%YAML 1.1", "learning_rate: 1e-4", "datasets: [{path: a}]", "env: {A: 1}", "'", '"', "{",
     "|", "1: 2", "seed: 0x7f", "seed: 12:30:45", "run_name: 2024-02-31", "!!binary x", "~: 1", "a: !!set {b}",
     "max_length: null"]
)  # fmt: skip
YAML = st.lists(YAML_PIECES | LETTERS, max_size=6).map("\n".join)


def read_yaml(given: tuple[str, str]) -> None:
    """Only a UserError."""
    method, text = given
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        path = Path(folder) / "flags.yaml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            from_mapping(method, load_yaml(path), str(path))
        except UserError as error:
            assert len(str(error)) < LONGEST_MESSAGE


METHOD = st.sampled_from(sorted(METHODS))
TARGETS: dict[str, tuple[Any, Callable[[Any], None]]] = {
    "text files": (damaged((".jsonl", ".json", ".csv", ".jsonl.gz", ".csv.gz")), read_file),
    "rows": (rows(), understand_rows),
    "templates": (TEMPLATE, render_template),
    "flags": (st.tuples(METHOD, WORDS), read_words),
    "YAML": (st.tuples(METHOD, YAML), read_yaml),
}
# Arrow's own C++ reads these: a crash would end the process, so the test leaves them to benchmarks/fuzz.py.
BINARY_TARGETS = {
    "Parquet files": (damaged((".parquet",)), read_file),
    "saved folders": (st.tuples(st.sampled_from(["data", "state", "info"]), changes()), read_saved),
}
