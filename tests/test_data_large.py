"""Much data: a preparation that is gone on from, hashes that are remembered, waiting for another process, windows made
beforehand, and memory that does not grow with the rows."""

import logging
import os
import threading
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from helpers_data import make_tokenizer, write_jsonl

from posttrain.config import SFTConfig
from posttrain.data import build as build_module
from posttrain.data import digests, journal, store
from posttrain.data import stream as stream_module
from posttrain.data.arrange import Documents, arrange, packed_batches
from posttrain.data.build import build
from posttrain.data.prepare import prepare
from posttrain.data.readers import Row
from posttrain.data.sources import FileSource
from posttrain.data.stream import Stream
from posttrain.data.tokenised import Options
from posttrain.errors import RunFailed, UserError

TOKENIZER = make_tokenizer()
PACKED = Options(max_length=40, keep_end=False, packing="bfd", shuffle_seed=3)
PLAIN = Options(max_length=12, keep_end=False)


class Ended(BaseException):
    """The process is no more."""


class Interrupted(FileSource):
    """Files of which so many rows are read before the process is killed."""

    stop = 0

    def rows(self, skip: int = 0) -> Iterator[Row]:
        for number, row in enumerate(super().rows(skip), start=skip):
            if number == self.stop:
                raise Ended
            yield row


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "_ROWS_AT_ONCE", 8)
    monkeypatch.setattr(journal, "_EVERY", 2)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    rows = [{"text": f"{number:03d}" + "x" * (number % 17)} for number in range(200)]
    return write_jsonl(tmp_path / "rows.jsonl", rows)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("options", [PLAIN, PACKED], ids=["plain", "packed"])
def test_a_preparation_that_was_killed_is_gone_on_from(
    options: Options, texts: Path, tmp_path: Path, small_batches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice, and then in the middle of laying rows out; to the bytes of one that was not."""

    def entry(name: str, source: FileSource) -> Path:
        return store.cached_folder(
            tmp_path / name, "key", lambda folder: build(folder, source, TOKENIZER, "sft", options)
        )

    whole = files_of(entry("whole", FileSource((texts,))))
    for stop in (60, 130):
        source = Interrupted((texts,))
        object.__setattr__(source, "stop", stop)
        with pytest.raises(Ended):
            entry("killed", source)
        file = tmp_path / "killed" / "key.part" / ("rows.arrow" if options is PLAIN else "documents.arrow")
        with file.open("ab") as half:
            half.write(b"half a batch")
    if options is PACKED:
        with monkeypatch.context() as patch, pytest.raises(Ended):
            patch.setattr(build_module, "packed_batches", lambda *_: iter(Interrupted((texts,)).rows()))
            entry("killed", FileSource((texts,)))
    asked = []
    original = FileSource.rows
    monkeypatch.setattr(FileSource, "rows", lambda self, skip=0: asked.append(skip) or original(self, skip))
    assert files_of(entry("killed", FileSource((texts,)))) == whole
    assert asked == ([128] if options is PLAIN else [])  # the last note was of 16 batches, and then of all
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == ["key", "key.lock"]


def test_what_can_be_gone_on_from_is_kept_and_mistakes_are_not(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / journal.FILE).write_text("{}")
        raise error("no")

    for error, is_kept in ((RunFailed, True), (UserError, False)):
        with pytest.raises(error):
            store.cached_folder(tmp_path, "key", fail)
        assert (tmp_path / "key.part").is_dir() == is_kept


def test_rows_for_which_there_is_no_room(
    texts: Path, tmp_path: Path, small_batches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = build_module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(build_module.shutil, "disk_usage", lambda folder: usage._replace(free=3000))
    with pytest.raises(UserError, match=r"--cache_dir \S+: 200 rows take about 0.1 MiB more.* another disk"):
        build(tmp_path, FileSource((texts,)), TOKENIZER, "sft", PACKED)


def test_hashes_of_large_files_are_remembered(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    original = digests._read
    monkeypatch.setattr(digests, "_read", lambda path, size: read.append(path) or original(path, size))
    monkeypatch.setattr(digests, "LARGE", 1)

    def digest() -> str:
        with digests.remembered_in(tmp_path / "digests"):
            return FileSource((texts,)).digest()

    assert digest() == digest() and len(read) == 2  # it was written a moment ago
    monkeypatch.setattr(digests, "_SETTLED", -60.0)
    before = digest()
    assert before == digest() and len(read) == 3
    state = texts.stat()
    content = texts.read_bytes()
    texts.write_bytes(content.replace(b"000", b"999"))
    os.utime(texts, ns=(state.st_atime_ns, state.st_mtime_ns))  # as if nothing had happened
    assert texts.stat().st_size == state.st_size
    after = digest()
    assert after != before and digest() == after and len(read) == 4
    (found,) = (tmp_path / "digests").glob("*.json")
    found.write_text("{")
    assert digest() == after and len(read) == 5


def test_another_process_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store, "_PATIENCE", 0.05)
    lock = FileLock(tmp_path / "key.lock")
    with lock, caplog.at_level(logging.INFO, logger="posttrain"):
        found: list[Path] = []
        thread = threading.Thread(target=lambda: found.append(store.cached_folder(tmp_path, "key", lambda _: None)))
        thread.start()
        thread.join(0.5)
        assert thread.is_alive() and "waiting for it" in caplog.text
        (tmp_path / "key").mkdir()
    thread.join(10)
    assert found == [tmp_path / "key"]


def test_two_experiments_share_the_cache(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As DVC runs them: copies of the data in folders of their own, one cache."""
    built = []
    monkeypatch.setattr(
        "posttrain.data.prepare.build", lambda folder, **given: built.append(folder) or build(folder, **given)
    )
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    keys = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.jsonl").write_bytes(texts.read_bytes())
        monkeypatch.chdir(tmp_path / name)
        data = prepare(SFTConfig(model_name_or_path="model", dataset_name="rows.jsonl"), TOKENIZER, "sft", "train")
        assert data is not None
        keys.add(data.dataset._fingerprint)
    assert len(built) == len(keys) == 1


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """But for some numbers a row: laying out 100,000 documents takes less than 100 bytes for each."""
    number, tokens = 100_000, [np.array([1, 2], dtype=np.int32)]
    batch = {
        "input_ids": tokens * 1000,
        "loss_mask": [np.array([0, 1], np.int8)] * 1000,
        "place": ["rows line 1"] * 1000,
    }
    store.write_rows(tmp_path / "documents", store.DOCUMENTS, [batch] * (number // 1000))
    tracemalloc.start()
    try:
        documents = Documents.open(tmp_path / "documents")
        order = np.random.default_rng(0).permutation(number)
        layout = arrange(documents, "bfd", 20, order)
        first = Counter(map(len, next(packed_batches(documents, layout))["input_ids"]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(layout) == 10_000 and first == {20: 1024}
    assert peak < 100 * number + 2**22


# -- windows made beforehand


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "WINDOW", 16)
    monkeypatch.setattr(stream_module, "LARGE_WINDOW", 32)


def streamed(file: Path, **flags: Any) -> Stream:
    config = SFTConfig(model_name_or_path="model", dataset_name=str(file), streaming=True, max_steps=3, **flags)
    data = prepare(config, TOKENIZER, "sft", "train")
    assert data is not None and isinstance(data.dataset, Stream)
    return data.dataset


def as_plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: np.asarray(value).tolist() for name, value in row.items()}


@pytest.mark.parametrize("flags", [{}, {"packing": True, "max_length": 40, "shuffle_dataset": True}])
def test_windows_made_beforehand_are_the_same(
    flags: dict[str, Any], texts: Path, tmp_path: Path, small_windows: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows, counts and the place of a checkpoint at every row, over the end of the data; after a jump back, too; and
    from a checkpoint."""

    def seen(stream: Stream, first: int = 0) -> list[Any]:
        found = []
        for number in range(first, 230):
            found.append((as_plain(stream[number]), dict(stream.counts)))
            if number % 40 == 0:
                stream.save_place(tmp_path / "place")
                found.append((tmp_path / "place" / "stream.json").read_text())
        return found

    alone = streamed(texts, **flags)
    expected = seen(alone)
    assert alone._coming is None
    monkeypatch.setattr(stream_module, "AHEAD_FROM", 0)
    stream = streamed(texts, **flags)
    assert seen(stream) == expected
    assert stream._coming is not None
    assert seen(stream) == expected
    stream[100]
    stream.save_place(tmp_path / "checkpoint")
    resumed = streamed(texts, **flags)
    resumed.load_place(tmp_path / "checkpoint")
    assert seen(resumed, 100)[-100:] == expected[-100:]


def test_a_mistake_in_a_window_is_told_when_its_turn_comes(
    tmp_path: Path, small_windows: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "AHEAD_FROM", 0)
    stream = streamed(write_jsonl(tmp_path / "rows.jsonl", [{"text": "good"}] * 40 + [{"text": 3}]))
    for number in range(32):
        stream[number]
    with pytest.raises(UserError, match=r"rows\.jsonl line 41"):
        stream[32]
