"""Plans that are kept: a real run tells how its plan came out, and a probe leaves nothing behind."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from tiny import run, write_base, write_preference, write_sft

from posttrain.cli import main
from posttrain.config import parse_command_line
from posttrain.planned import StepClock, outcome_of, plan_file, read_plan
from posttrain.planning.records import errors

Capture = pytest.CaptureFixture[str]


def words_of(base: Path, data: Path, out: Path) -> list[str]:
    """What `tiny.run` types."""
    flags = {
        "model_name_or_path": base,
        "dataset_name": data,
        "output_dir": out,
        "cache_dir": out.parent / "cache",
        "max_steps": 3,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": "true",
    }
    return [part for name, value in flags.items() for part in (f"--{name}", str(value))]


def test_a_run_says_how_its_plan_came_out(tmp_path: Path, capsys: Capture, caplog: pytest.LogCaptureFixture) -> None:
    base, data, out = write_base(tmp_path / "base"), write_sft(tmp_path / "sft.jsonl"), tmp_path / "out"
    words = words_of(base, data, out)
    assert main(["plan", "sft", *words, "--format", "json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert not out.exists()

    with caplog.at_level(logging.INFO, "posttrain"):
        run("sft", base, data, out)
    [line] = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Planned ")]
    written = json.loads((out / "plan.json").read_text(encoding="utf-8"))
    assert written["plan"] == planned
    outcome = written["outcome"]
    assert outcome["steps"] == planned["steps"]["number"] == 3
    predicted, actual = planned["peak"] / 2**20, outcome["peak_memory_mib"]
    assert outcome["peak_memory_error"] == pytest.approx(predicted / actual - 1)
    assert outcome["seconds_a_step_error"] == pytest.approx(planned["time"]["step"] / outcome["seconds_a_step"] - 1)
    assert f"Planned {predicted:,.0f} MiB" in line
    assert f"it took {actual:,.0f} MiB" in line

    capsys.readouterr()
    assert main(["plan", "--outcomes", "--cache_dir", str(out.parent / "cache"), "--format", "json"]) == 0
    listed = json.loads(capsys.readouterr().out)["outcomes"]
    assert [(one["method"], one["steps"], one["peak_memory_mib"]) for one in listed] == [("sft", 3, actual)]
    assert main(["plan", "--outcomes", "--cache_dir", str(out.parent / "cache")]) == 0
    assert "memory: off by" in capsys.readouterr().out


def test_whether_a_run_was_planned_changes_nothing_of_it(tmp_path: Path, capsys: Capture) -> None:
    base, data = write_base(tmp_path / "base"), write_sft(tmp_path / "sft.jsonl")
    out = tmp_path / "one" / "out"
    plain = run("sft", base, data, out)
    without = {path.name: path.read_bytes() for path in out.iterdir()}
    other = tmp_path / "two" / "out"
    assert main(["plan", "sft", *words_of(base, data, other)]) == 0
    planned = run("sft", base, data, other)
    with_plan = {path.name: path.read_bytes() for path in other.iterdir()}
    assert with_plan.keys() - without.keys() == {"plan.json"}
    same = {"model.safetensors", "trainer_state.json", "run.json"}
    assert {name: with_plan[name] for name in same} == {name: without[name] for name in same}
    assert plain["log_history"] == planned["log_history"]


def test_another_run_has_another_plan(tmp_path: Path) -> None:
    def file_of(*more: str, processes: int = 1) -> Path:
        words = ["--model_name_or_path", "m", "--dataset_name", "d", "--cache_dir", str(tmp_path), *more]
        return plan_file(parse_command_line("dpo", words)[0], processes)

    assert file_of() == file_of("--output_dir", "elsewhere", "--report_to", "tensorboard")
    others = [file_of("--beta", "0.2"), file_of(processes=2), file_of("--dataset_name", "e"), file_of()]
    assert len(set(others)) == 4


def test_a_plan_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    for content in ("", "[1]", "{}", '{"plan": 1}'):
        (tmp_path / "plan.json").write_text(content, encoding="utf-8")
        assert read_plan(tmp_path / "plan.json") is None
    assert read_plan(tmp_path / "missing.json") is None


def test_errors_are_of_what_it_took() -> None:
    predicted = {"peak_memory_mib": 900.0, "seconds_a_step": 0.3}
    found = outcome_of(predicted, 1000.0, 0.2, 7)
    assert found["peak_memory_error"] == pytest.approx(-0.1)
    assert found["seconds_a_step_error"] == pytest.approx(0.5)
    assert "seconds_a_step" not in outcome_of(predicted, 1000.0, None, 1)
    one, other = found, found | {"peak_memory_error": 0.02, "seconds_a_step_error": 0.1}
    told = errors([one, other])
    assert told["peak_memory_median"] == pytest.approx(0.06)
    assert told["seconds_a_step_largest"] == pytest.approx(0.5)


def test_a_clock_counts_steps_and_not_what_stands_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = StepClock()
    clock.on_train_begin()
    for seconds in (5.0, 1.0, 3.0):
        now[0] += seconds
        clock.on_step_end()
        now[0] += 10.0  # an evaluation
        clock.on_evaluate()
        now[0] += 7.0
        clock.on_save()
    assert clock.seconds == [5.0, 1.0, 3.0]
    assert clock.mean == 2.0  # the first one sets everything up


def test_a_probe_measures_and_leaves_nothing_behind(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, data, out = write_base(tmp_path / "base"), write_preference(tmp_path / "pairs.jsonl"), tmp_path / "out"
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    words = [*words_of(base, data, out), "--per_device_train_batch_size", "4"]
    assert main(["plan", "dpo", *words, "--format", "json"]) == 0
    formula = json.loads(capsys.readouterr().out)
    assert main(["plan", "dpo", *words, "--probe", "--probe_steps", "4", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    probe = found["probe"]
    assert len(probe["seconds"]) == 3  # without the first
    by_formula = formula["time"]["step"] / probe["seconds_by_formula"]  # the run's mean step by those of the probe
    assert found["time"]["step"] == pytest.approx(by_formula * sum(probe["seconds"]) / 3)
    assert (formula["time"]["is_measured"], found["time"]["is_measured"]) == (False, True)
    assert probe["peak"] > 200 * 2**20
    # The largest micro-batch of the run is among those of the probe, in the same numbers.
    assert probe["largest"] == found["steps"]["largest"]
    assert not out.exists()
    assert not list((tmp_path / "temporary").iterdir())


def test_mistakes_are_told(tmp_path: Path, capsys: Capture) -> None:
    for words, said in (
        ([], "name a method"),
        (["dpoo"], "did you mean dpo?"),
        (["dpo", "--params"], "--params: a value is missing"),
        (["dpo", "--gpu", "a100", "--model_name_or_path", "m", "--dataset_name", "d"], "not one of"),
        (["dpo", "--probe", "--gpu", "h100", "--model_name_or_path", "m", "--dataset_name", "d"], "leave out one"),
        (["sft", "--model_name_or_path", str(tmp_path), "--dataset_name", "d"], "config.json"),
        (["sft", "--learning_rat", "1"], "did you mean --learning_rate?"),
    ):
        assert main(["plan", *words]) == 2
        assert said in capsys.readouterr().err
