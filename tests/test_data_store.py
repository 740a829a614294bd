"""The cache: one process does the work, and no half of it is ever seen."""

import threading
import time
from pathlib import Path

import pytest

from posttrain.data.store import cached_folder


def test_of_several_callers_one_does_the_work(tmp_path: Path) -> None:
    built, found = [], []

    def build(folder: Path) -> None:
        built.append(folder)
        time.sleep(0.2)
        (folder / "rows").write_text("all of it")

    threads = [
        threading.Thread(target=lambda: found.append((cached_folder(tmp_path, "key", build) / "rows").read_text()))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1 and found == ["all of it"] * 4


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "rows").write_text("half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        cached_folder(tmp_path, "key", fail)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    assert cached_folder(tmp_path, "key", lambda folder: None) == tmp_path / "key"
