"""Trackers get every metric under its name, and the flags of the run; a tracker that is not there is told at once."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import struct
import warnings
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import run, run_policy, write_base, write_preference, write_prompts, write_sft

from posttrain import trackers
from posttrain.config import from_mapping
from posttrain.errors import UserError
from posttrain.trackers import QUIET, be_quiet, check_trackers, tracker_errors

EVALUATION = ["--eval_strategy", "steps", "--eval_steps", "2", "--test_split_size", "0.25"]
# What trackers get in a place of its own or not at all: once a run, or about the run itself.
ONCE = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the machine's trackers is used; what a run sets is gone after the test."""
    for name in ("WANDB_DIR", "WANDB_PROJECT", "WANDB_MODE", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB__SERVICE_WAIT", "300")  # seconds for its other process to start; 30, if nothing is said
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def train(method: str, base: Path, folder: Path, *words: str) -> list[dict[str, Any]]:
    """The logged lines of a run that is evaluated once."""
    write: Any = {"sft": write_sft, "grpo": write_prompts, "rloo": write_prompts}.get(method, write_preference)
    data = write(folder / "rows.jsonl")
    runs = run_policy if method in ("grpo", "rloo") else run
    return list(runs(method, base, data, folder / "out", "--max_steps", "2", *EVALUATION, *words)["log_history"])


def renamed(line: dict[str, Any]) -> dict[str, float]:
    """A logged line in the trackers' names."""
    names = {name: f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}" for name in line}
    return {names[name]: value for name, value in line.items() if name not in {*ONCE, "step"}}


@pytest.mark.parametrize("method", ["sft", "reward", "dpo", "grpo", "rloo"])
def test_tensorboard_has_every_logged_number(method: str, base: Path, tmp_path: Path) -> None:
    history = train(method, base, tmp_path, "--report_to", "tensorboard", "--seed", "5")
    (folder,) = (tmp_path / "out/runs").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    found = {(name, one.step): one.value for name in events.Tags()["scalars"] for one in events.Scalars(name)}
    expected = {(name, line["step"]): value for line in history for name, value in renamed(line).items()}
    assert expected.keys() <= found.keys()
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-6)
    assert ("eval/loss", 2) in found and ("train/tokens_per_second", 1) in found
    text = events.Tensors("args/text_summary")[0].tensor_proto.string_val[0].decode()
    flags = json.loads(text)
    assert flags["seed"] == 5 and flags["model_name_or_path"] == str(base) and flags["lora_r"] == 16


def test_trackio_has_every_logged_number(base: Path, tmp_path: Path) -> None:
    trackio = pytest.importorskip("trackio")
    project = "of-a-test"
    history = train("sft", base, tmp_path, "--report_to", "trackio", "--project", project, "--run_name", "mine")
    with closing(sqlite3.connect(Path(os.environ["TRACKIO_DIR"]) / f"{project}.db")) as database:
        rows = [json.loads(text) for (text,) in database.execute("SELECT metrics FROM metrics ORDER BY id")]
    lines = [line for line in history if not ONCE & line.keys()]
    assert len(rows) >= len(lines) == 3
    for row, line in zip(rows, lines, strict=False):
        assert row.pop("train/global_step") == line["step"]
        assert {name: row[name] for name in renamed(line)} == pytest.approx(renamed(line))
    (recorded,) = trackio.Api().runs(project)
    assert recorded.name == "mine" and recorded.config["dataset_name"] == str(tmp_path / "rows.jsonl")


def records_of(content: bytes) -> Iterator[bytes]:
    """The records of a W&B file: a log as LevelDB's, in blocks of 32 KiB, each part of a record with a header of 7
    bytes (checksum, length, and which part it is: 1 the whole, 2 the first, 3 a middle one, 4 the last)."""
    at, parts = 7, b""
    while at < len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, part = struct.unpack_from("<IHB", content, at)
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if part in (1, 4):
            yield parts
            parts = b""


def test_wandb_has_every_logged_number(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, into a file beside the run."""
    wandb = pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        history = train("sft", base, tmp_path, "--report_to", "wandb", "--project", "demo")
        wandb.finish()
        wandb.teardown()  # its other process writes the file; `finish` does not wait for that, this does
    assert not (tmp_path / "wandb").exists()  # not in the current folder
    (file,) = (tmp_path / "out/wandb").glob("offline-run-*/run-*.wandb")
    records = [Record.FromString(data) for data in records_of(file.read_bytes())]
    assert [record.run.project for record in records if record.HasField("run")][:1] == ["demo"]
    rows = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    lines = [line for line in history if not ONCE & line.keys()]
    assert len(lines) == 3
    for row, line in zip(rows, lines, strict=False):
        assert {name: row[name] for name in renamed(line)} == pytest.approx(renamed(line))


def test_mlflow_has_every_logged_number(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a database takes many seconds to be made
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "runs").as_uri())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        history = train("sft", base, tmp_path, "--report_to", "mlflow", "--project", "demo")
        client = mlflow.MlflowClient()
        experiment = client.get_experiment_by_name("demo")
        (recorded,) = client.search_runs([experiment.experiment_id])
        names = {name for line in history for name in line} - {"step"}
        for name in names:
            found = {one.step: one.value for one in client.get_metric_history(recorded.info.run_id, name)}
            assert found == pytest.approx({line["step"]: line[name] for line in history if name in line}), name
    assert recorded.data.params["dataset_name"] == str(tmp_path / "rows.jsonl")


def config(**flags: Any) -> Any:
    return from_mapping("sft", {"model_name_or_path": "m", "dataset_name": "d", **flags}, "test")


def test_where_mlflow_writes(tmp_path: Path) -> None:
    if importlib.util.find_spec("mlflow") is None:
        pytest.skip("mlflow is not installed")
    check_trackers(config(report_to="mlflow", output_dir=str(tmp_path / "out"), work_dir=str(tmp_path / "work")))
    assert os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/work/mlflow.db"


def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    message = r"--report_to wandb: the package wandb is not installed: pip install -e '\.\[wandb\]'"
    with pytest.raises(UserError, match=message) as raised:
        check_trackers(config(report_to=["wandb", "tensorboard"], output_dir=str(tmp_path)))
    assert raised.value.page == "troubleshooting.md#trackers"
    with pytest.raises(UserError, match="the package clearml is not installed: pip install clearml"):
        check_trackers(config(report_to="clearml", output_dir=str(tmp_path)))
    check_trackers(config(report_to="all", output_dir=str(tmp_path)))  # all that are there: none
    check_trackers(config(report_to="none", output_dir=str(tmp_path)))
    check_trackers(config(output_dir=str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_what_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--report_to wanbd: no such tracker .*did you mean wandb"):
        check_trackers(config(report_to="wanbd", output_dir=str(tmp_path)))


def test_wandb_without_an_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would ask, or fail, after the weights have been loaded."""
    pytest.importorskip("wandb")
    with pytest.raises(UserError, match=r"no account is known; run `wandb login`.*WANDB_MODE=offline"):
        check_trackers(config(report_to="wandb", output_dir=str(tmp_path / "out")))
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_trackers(config(report_to="wandb", output_dir=str(tmp_path / "out")))
    assert os.environ["WANDB_DIR"] == str(tmp_path / "out")


def test_a_tracker_that_fails_later() -> None:
    failure = type("CommError", (Exception,), {"__module__": "wandb.errors.errors"})
    message = "--report_to wandb has failed: timed out; check its server"
    with pytest.raises(UserError, match=message) as raised, tracker_errors():
        raise failure("timed out\nand a long explanation")
    assert raised.value.page == "troubleshooting.md#trackers"
    with pytest.raises(ZeroDivisionError), tracker_errors():
        raise ZeroDivisionError


def test_nothing_is_reported_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in QUIET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "true")  # the user's own word
    be_quiet()
    assert {name: os.environ[name] for name in QUIET} == QUIET | {"WANDB_ERROR_REPORTING": "true"}
