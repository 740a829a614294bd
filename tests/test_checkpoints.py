"""Folders are complete or absent: manifests, names, rotation, the lock, disks without room."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain import checkpoints, disk
from posttrain.errors import RunFailed, UserError


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in ({"weights": "1234"} | files).items():
        (folder / name).write_text(text)
    checkpoints.write_manifest(folder)
    return folder


def names(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir())


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda folder: None, None),
        (lambda folder: (folder / "README.md").write_text("edited"), None),
        (lambda folder: (folder / "notes.txt").write_text("more"), None),
        (lambda folder: (folder / "weights").unlink(), "weights is missing"),
        (lambda folder: (folder / "weights").write_text("123"), "weights has 3 bytes in place of 4"),
        (lambda folder: (folder / "weights").write_text("1235"), "weights is not as it was written"),
        (lambda folder: (folder / "manifest.json").unlink(), "it has no manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text('{"files"'), "its manifest.json cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "its manifest.json cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text('{"files": {"a": {}}}'), "manifest.json cannot be read"),
    ],
)
def test_what_is_wrong_with_a_folder(harm: object, told: str | None, tmp_path: Path) -> None:
    folder = write(tmp_path / "checkpoint-1", **{"README.md": "card"})
    harm(folder)
    wrong = checkpoints.what_is_wrong(folder)
    assert wrong is None if told is None else told in wrong


def test_a_model_folder_that_was_changed_is_told(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    checkpoints.check_model_folder("model_name_or_path", folder)
    (folder / "weights").write_text("4321")
    with pytest.raises(UserError, match=r"model_name_or_path: .*model is not whole: weights is not as it was written"):
        checkpoints.check_model_folder("model_name_or_path", folder)
    (folder / "manifest.json").unlink()  # as the message says
    checkpoints.check_model_folder("model_name_or_path", folder)


def test_a_damaged_checkpoint_is_kept_aside_and_the_one_before_it_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (2, 4, 10):
        write(tmp_path / f"checkpoint-{step}")
    assert checkpoints.newest_whole(tmp_path) == tmp_path / "checkpoint-10"
    (tmp_path / "checkpoint-10" / "weights").write_text("1235")
    (tmp_path / "damaged-checkpoint-10").mkdir()
    with caplog.at_level("WARNING"):
        assert checkpoints.newest_whole(tmp_path) == tmp_path / "checkpoint-4"
    assert "checkpoint-10 is damaged: weights is not as it was written. It is kept as damaged-" in caplog.text
    assert "-10-1; the one before it is looked at." in caplog.text
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4", "damaged-checkpoint-10", "damaged-checkpoint-10-1"]
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}" / "manifest.json").unlink()
    assert checkpoints.newest_whole(tmp_path) is None


def test_what_was_left_half_done_is_ended(tmp_path: Path) -> None:
    """A complete checkpoint gets its name, if that is free; what is not complete, and what was on its way out, goes."""
    write(tmp_path / ".saving-checkpoint-2")
    (tmp_path / ".saving-checkpoint-3").mkdir()
    write(tmp_path / "checkpoint-4", origin="first")
    write(tmp_path / ".saving-checkpoint-4", origin="again")
    write(tmp_path / ".removing-checkpoint-1")
    checkpoints.tidy(tmp_path)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4"]
    assert (tmp_path / "checkpoint-4" / "origin").read_text() == "first"


@pytest.mark.parametrize(
    ("limit", "keep", "left"),
    [
        (None, {9}, [1, 3, 9, 10]),
        (0, {9}, [1, 3, 9, 10]),
        (2, {10}, [9, 10]),
        (2, {1, 10}, [1, 10]),
        (1, {1, 10}, [1, 10]),
        (3, {1, 10}, [1, 9, 10]),
        (7, {10}, [1, 3, 9, 10]),
    ],
)
def test_rotation_takes_the_oldest(limit: int | None, keep: set[int], left: list[int], tmp_path: Path) -> None:
    """By their steps, not by their names or times; the newest and the best stay."""
    for step in (10, 9, 3, 1):
        write(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-notes").mkdir()
    checkpoints.rotate(tmp_path, limit, keep)
    (tmp_path / "checkpoint-notes").rmdir()
    assert [checkpoints.step_of(path) for path in checkpoints.checkpoints(tmp_path)] == left
    assert names(tmp_path) == sorted(f"checkpoint-{step}" for step in left)


def test_a_model_takes_the_place_of_another_and_a_mixture_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "out", **{"model.safetensors": "old", "config.json": "{}"})
    (folder / "templates").mkdir()
    (folder / "templates" / "old.jinja").write_text("old")
    (folder / "checkpoint-1").mkdir()
    new = {"adapter_model.safetensors": "new", "config.json": "{ }"}
    beside = write(folder / ".saving", **new)
    replaced: list[str] = []

    def replace_until(source: Path, target: Path, rename: object = os.replace) -> None:
        if len(replaced) == 2:
            raise KeyboardInterrupt
        rename(source, target)
        replaced.append(target.name)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", replace_until)
        checkpoints.move_into_place(beside, folder)
    assert replaced[0] == "manifest.json" and checkpoints.what_is_wrong(folder) is not None
    shutil.rmtree(beside)
    checkpoints.move_into_place(write(beside, **new), folder)
    assert checkpoints.what_is_wrong(folder) is None
    wanted = ["adapter_model.safetensors", "checkpoint-1", "config.json", "manifest.json", "templates", "weights"]
    assert names(folder) == wanted
    (beside / "templates").mkdir(parents=True)
    (beside / "templates" / "new.jinja").write_text("new")
    checkpoints.write_manifest(beside)
    checkpoints.move_into_place(beside, folder)
    assert names(folder / "templates") == ["new.jinja"] and checkpoints.what_is_wrong(folder) is None


@pytest.fixture
def another_run(tmp_path: Path) -> Iterator[Path]:
    """A folder that a process of another run holds."""
    code = (
        "import sys, time; from pathlib import Path; from posttrain.checkpoints import only_run_in\n"
        "with only_run_in(Path(sys.argv[1])):\n    print('here', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "here\n"
    yield tmp_path
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with checkpoints.only_run_in(tmp_path):  # the lock is gone with its process
        pass


def test_two_runs_do_not_share_a_folder(another_run: Path) -> None:
    with pytest.raises(UserError, match="another run is at work in"), checkpoints.only_run_in(another_run):
        raise AssertionError


def test_a_disk_that_takes_no_more_is_told(tmp_path: Path) -> None:
    """A real error of the operating system, from each of the libraries that write; files here may have 1,000 bytes."""
    import torch
    from safetensors.torch import save_file

    write(tmp_path / "checkpoint-2")
    big = torch.zeros(10_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for number, save in enumerate(
            [
                lambda path: torch.save({"big": big}, path),
                lambda path: save_file({"big": big}, path),
                lambda path: path.write_bytes(bytes(10_000)),
            ]
        ):
            beside = checkpoints.saving_folder(tmp_path, 4)
            beside.mkdir()
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
            with pytest.raises(RunFailed) as told, checkpoints.room_to_write("checkpoint-4", tmp_path, beside):
                save(beside / f"file{number}")
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            assert "checkpoint-4 cannot be written: " in str(told.value)
            assert "checkpoint-2, which is whole" in str(told.value)
            assert names(tmp_path) == ["checkpoint-2"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    with pytest.raises(ZeroDivisionError), checkpoints.room_to_write("checkpoint-4", tmp_path, tmp_path / "none"):
        _ = 1 / 0


def test_room_is_looked_at_before_training(tmp_path: Path) -> None:
    disk.check_room(tmp_path, 1000, 1000)
    with pytest.raises(
        UserError, match=r"has room for .* GiB; a checkpoint takes about 1,048,576.0 GiB and the model 0.0 MiB"
    ):
        disk.check_room(tmp_path, 2**50, 1000)


def test_a_small_file_is_there_in_full_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "metrics" / "sft.json"
    disk.write_text(file, json.dumps({"loss": 1}))
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError("full")))
        disk.write_text(file, json.dumps({"loss": 2}))
    assert json.loads(file.read_text()) == {"loss": 1}
