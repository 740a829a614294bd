"""Tokenising in several processes: the bytes, counts and messages of one; and what becomes of processes that end."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers_data import bot, make_tokenizer, user, write_jsonl

from posttrain.data import build as build_module
from posttrain.data import parallel
from posttrain.data.build import build
from posttrain.data.parallel import Workers, team_of_file
from posttrain.data.readers import Row
from posttrain.data.sources import FileSource
from posttrain.data.tokenised import Options, Tokenised
from posttrain.errors import RunFailed, UserError

TOKENIZER = make_tokenizer()
OPTIONS = {
    "sft": Options(max_length=60, keep_end=False, assistant_only=True, packing="bfd", shuffle_seed=1),
    "preference": Options(max_length=60, keep_end=False),
    "prompts": Options(max_length=24, keep_end=True, long_prompts="drop"),
}


def some_rows(kind: str, number: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for index in range(number):
        prompt, answer = [user(f"{index}" + "?" * (index % 23))], [bot("word " * (index % 17) + str(index))]
        if kind == "sft":
            rows.append({"messages": prompt + answer})
        elif kind == "prompts":
            rows.append({"prompt": prompt, "solution": index, "more": {"a": [None, "é"]}})
        else:
            rows.append({"prompt": prompt, "chosen": answer, "rejected": [bot(f"no{index}")], "margin": index / 7})
    return rows


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "_ROWS_AT_ONCE", 16)


def built(folder: Path, file: Path, kind: str, processes: int | None) -> dict[str, bytes]:
    folder.mkdir()
    build(folder, FileSource((file,)), TOKENIZER, kind, OPTIONS[kind], processes)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", OPTIONS)
def test_the_bytes_of_one_process(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = children()
    monkeypatch.setattr(parallel, "_ROWS_ALONE", 100)
    monkeypatch.setattr(parallel, "num_cores", lambda: 2)
    file = write_jsonl(tmp_path / "rows.jsonl", some_rows(kind, 320))
    alone, three, unset = (built(tmp_path / str(n), file, kind, n) for n in (1, 3, None))
    assert alone == three == unset and set(alone) == {"rows.arrow", "about.json"}
    assert b"dropped" in alone["about.json"] or b"truncated" in alone["about.json"]
    assert children() <= before


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE}


def test_the_messages_of_one_process(tmp_path: Path) -> None:
    """Of mistakes in some rows, of which only the first is met by the tokenizer; and of a line that is no JSON."""
    rows = some_rows("preference", 300)
    rows[100]["rejected"] = rows[100]["chosen"]
    rows[101] = {"prompt": 1}
    rows[299] = {"text": "no pair"}
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    broken = tmp_path / "broken.jsonl"
    broken.write_text(file.read_text() + "{\n")
    half = tmp_path / "half.jsonl"
    half.write_text("".join(file.read_text().splitlines(keepends=True)[:90]) + "{\n")
    for path, expected in ((file, "3 of 300 rows cannot be used"), (broken, "line 301: broken"), (half, "line 91")):
        messages = []
        for processes in (1, 2):
            with pytest.raises(UserError, match=expected) as error:
                built(tmp_path / f"{path.stem}{processes}", path, "preference", processes)
            messages.append((str(error.value), error.value.page))
        assert messages[0] == messages[1]


def batch(*texts: Any) -> list[Row]:
    return [Row(f"row {index}", {"text": text}) for index, text in enumerate(texts)]


def act(rows: list[Row], first_row: int) -> Tokenised:
    """Does what the first row says, and then tells what it was given."""
    what = rows[0].columns["text"]
    if isinstance(what, int):
        os.kill(os.getpid(), what)
        time.sleep(0.1)
    if what == "an error":
        raise UserError("row 0: too bad", "a page")
    return Tokenised(columns={"place": [row.place for row in rows], "process": [os.getpid()], "first": [first_row]})


@contextlib.contextmanager
def workers(number: int = 2) -> Iterator[Workers]:
    started = Workers(act, number)
    with contextlib.closing(started):
        yield started


def test_a_process_that_is_killed_is_told_of_and_nobody_waits(tmp_path: Path) -> None:
    before = children()
    with workers() as team:
        waiting = [team.begin(batch(text), 0) for text in ("fine", signal.SIGKILL.value, "fine")]
        with pytest.raises(RunFailed, match=r"one of 2 processes .* has ended by signal 9.*--dataset_num_proc 1"):
            for result in waiting:
                result()
    assert children() <= before


def test_processes_outlive_signals_and_pass_mistakes_on() -> None:
    with workers() as team:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            assert team.begin(batch(number.value), 5)().columns["first"] == [5]
        with pytest.raises(UserError, match="too bad") as error:
            team.begin(batch("an error"), 0)()
        assert error.value.page == "a page"


def test_what_cannot_be_sent_stays_here() -> None:
    with workers() as team:
        picture = batch("fine", lambda: None)
        with pytest.raises((pickle.PicklingError, AttributeError)):
            pickle.dumps(picture)
        here, there = team.begin(picture, 3)().columns, team.begin(batch("fine", "too"), 3)().columns
        assert here["process"] == [os.getpid()] != there["process"] and here["place"] == there["place"]


def test_one_process_needs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "Workers", None)
    for asked, cores in ((1, 8), (None, 1)):
        monkeypatch.setattr(parallel, "num_cores", lambda cores=cores: cores)
        team = team_of_file(act, asked)
        for number in range(0, 20_000, 1000):
            assert team.begin(batch(*"x" * 1000), number)().columns["process"] == [os.getpid()]
        assert team.ahead() == 1


_RUN = """
import os, signal, sys, time
from posttrain.data.parallel import Workers
from posttrain.stop import handled, children

def slow(rows, first_row):
    time.sleep(60)

with handled():
    team = Workers(slow, 2)
    team.begin([], 0)
    print(*children(), flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_they_end_with_the_process_that_has_started_them(number: signal.Signals) -> None:
    """At work, and whatever ends it."""
    with subprocess.Popen([sys.executable, "-c", _RUN], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None
        processes = [psutil.Process(int(word)) for word in run.stdout.readline().split()]
        assert len(processes) == 2
        run.send_signal(number)
        assert run.wait(10) == (-number if number == signal.SIGKILL else 128 + number)
        _, alive = psutil.wait_procs(processes, timeout=10)
        assert not alive
