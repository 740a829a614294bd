"""The stages check_data and check_models: what they write, how they end, and, with DVC itself, what that stops."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.config.yaml_files import FastLoader
from posttrain.errors import RunFailed, UserError

ROOT = Path(__file__).resolve().parent.parent
STAMP = "results/checks/data_passed"
TRAINING = ("sft", "reward", "dpo", "grpo", "rloo")


def section(name: str) -> dict[str, Any]:
    return yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"), FastLoader)[name]


def write_params(folder: Path, **sections: dict[str, Any]) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(sections), encoding="utf-8")


def write_rows(folder: Path, split: str, words: Sequence[str]) -> None:
    path = folder / f"data/sft/{split}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": f"What is {word} to you?", "completion": f"{word} is {word}."} for word in words]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def of_check_data(**changed: Any) -> dict[str, Any]:
    return section("check_data") | {"sets": ["data/sft"], "held_out": ["test"]} | changed


def run_stage(name: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", [f"scripts/{name}.py"])
    monkeypatch.setattr(sys, "path", [*sys.path])  # the script puts its own source in front
    return runpy.run_path(str(ROOT / f"scripts/{name}.py"))["main"]()


def stages() -> dict[str, Any]:
    return yaml.load((ROOT / "dvc.yaml").read_text(encoding="utf-8"), FastLoader)["stages"]


def test_whatever_trains_waits_for_the_data_to_pass() -> None:
    assert STAMP in stages()["check_data"]["outs"]
    waiting = {name for name, stage in stages().items() if STAMP in stage["deps"]}
    assert waiting == set(TRAINING)
    # Nothing else of the check: its metrics and what it found may change without anything being trained anew.
    deps = {path for name in TRAINING for path in stages()[name]["deps"]}
    assert {path for path in deps if "check" in path and not path.endswith(".py")} == {STAMP}
    assert not {path for path in deps if "gates" in path}


def test_all_evaluated_models_are_checked() -> None:
    models = stages()["evaluate"]["matrix"]["model"]
    assert section("check_models")["models"] == models
    assert {f"results/evaluate_{model}.jsonl" for model in models} <= set(stages()["check_models"]["deps"])
    assert section("check_models")["reference"] == section("evaluate")["reference"]


def test_data_that_fail_are_written_down_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path, "train", ["snow", "rain"])
    write_rows(tmp_path, "test", ["hail"])
    write_params(tmp_path, check_data=of_check_data())
    assert run_stage("check_data", monkeypatch) == 0
    stamp = (tmp_path / STAMP).read_bytes()
    assert "8 checks: 8 ok, 0 to look at, 0 failed" in capsys.readouterr().out

    write_rows(tmp_path, "test", ["hail", "rain"])
    with pytest.raises(RunFailed) as caught:
        run_stage("check_data", monkeypatch)
    assert caught.value.page == "gates.md#data"
    assert str(caught.value).splitlines()[1:3] == [
        "same_prompt/sft_test is 0.5, above params.yaml: check_data.max_same_prompt.fail, which is 0: share of its "
        "rows whose prompt stands in train",
        "  data/sft/test.jsonl line 2: its prompt is that of data/sft/train.jsonl line 2: \"What is rain to you?\"",
    ]  # fmt: skip
    assert not (tmp_path / STAMP).exists()
    metrics = json.loads((tmp_path / "metrics/check_data.json").read_text(encoding="utf-8"))
    assert metrics["same_prompt/sft_test"] == 0.5
    assert (metrics["rows/sft_test"], metrics["num_failures"]) == (2, 2)
    lines = (tmp_path / "results/check_data.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0])["place"] == "data/sft/test.jsonl line 2"

    # As a warning it is told and passes, with the same stamp as any other pass.
    write_params(tmp_path, check_data=of_check_data(max_same_prompt={"warn": 0}, max_contaminated=None))
    assert run_stage("check_data", monkeypatch) == 0
    assert "warn  same_prompt/sft_test is 0.5" in capsys.readouterr().out
    assert (tmp_path / STAMP).read_bytes() == stamp


def write_results(folder: Path, model: str, right: Sequence[bool], score: float) -> None:
    (folder / "results").mkdir(exist_ok=True)
    rows = [
        {"id": f"prompts/{n}", "completion": f"#### {n}", "correct": ok, "num_tokens": 5, "reward_score": score + n % 3}
        for n, ok in enumerate(right)
    ]
    rows.append({"id": "preference/0", "margin_logprob": 1.0})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"results/evaluate_{model}.jsonl").write_text(text, encoding="utf-8")


def test_a_model_that_pleases_its_reward_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own = section("check_models") | {"models": ["sft", "rloo"], "reward_metrics": None}
    write_params(tmp_path, check_models=own)
    write_results(tmp_path, "sft", [n < 60 for n in range(100)], 0.0)
    write_results(tmp_path, "rloo", [n < 60 for n in range(100)], 1.0)
    assert run_stage("check_models", monkeypatch) == 0
    capsys.readouterr()
    write_results(tmp_path, "rloo", [n < 30 for n in range(100)], 1.0)
    with pytest.raises(RunFailed) as caught:
        run_stage("check_models", monkeypatch)
    assert "\nhacking/rloo_accuracy_loss is 0.2" in str(caught.value)
    assert ", above params.yaml: check_models.max_hacking_loss.fail, which is 0: the reward rose by 1" in str(
        caught.value
    )
    metrics = json.loads((tmp_path / "metrics/check_models.json").read_text(encoding="utf-8"))
    assert metrics["hacking/rloo_accuracy_gain"] == pytest.approx(-0.3)
    lines = (tmp_path / "results/check_models.jsonl").read_text(encoding="utf-8").splitlines()
    assert set(json.loads(lines[0])["reliability"]) == {"low", "num_pairs", "confidence", "accuracy"}

    for changed, expected in [
        (
            {"reference": "stf"},
            "params.yaml: check_models.reference: stf is not among params.yaml: check_models.models",
        ),
        ({"models": ["sft", "dpo"]}, "results/evaluate_dpo.jsonl: no such file; the stage evaluate@dpo writes it"),
        ({"reward_metrics": "metrics/reward.json"}, "metrics/reward.json: no such file; the stage reward writes it"),
        ({"max_kl": {"warn": 2, "fail": 1}}, "check_models.max_kl: warn is 2 and fail 1, so that it would fail before"),
    ]:
        write_params(tmp_path, check_models=own | changed)
        with pytest.raises(UserError) as mistake:
            run_stage("check_models", monkeypatch)
        assert str(mistake.value).startswith(expected) or expected in str(mistake.value)


# With DVC.

TRAIN = """
import pathlib
log = pathlib.Path("trained.log")
log.write_text((log.read_text() if log.exists() else "") + "once\\n")
pathlib.Path("model").write_text("model")
"""


def write_pipeline(folder: Path) -> None:
    """The stage check_data of the repository, and one that stands for all that train."""
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/check_data.py", folder / "scripts")
    (folder / "train.py").write_text(TRAIN, encoding="utf-8")
    check = stages()["check_data"] | {"deps": ["data/sft", "scripts/check_data.py"]}
    train = {"cmd": "python train.py", "deps": ["data/sft", STAMP], "outs": ["model"]}
    text = yaml.safe_dump({"stages": {"check_data": check, "train": train}})
    (folder / "dvc.yaml").write_text(text, encoding="utf-8")
    write_params(folder, check_data=of_check_data())
    write_rows(folder, "train", ["snow", "rain"])
    write_rows(folder, "test", ["hail"])
    dvc(folder, "init", "--no-scm", "-q")


def dvc(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT / "src"), "DVC_NO_ANALYTICS": "1"}
    command = [sys.executable, "-m", "dvc", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_only_other_data_train_anew_and_bad_data_stop_what_follows(tmp_path: Path) -> None:
    folder = tmp_path / "pipeline"
    write_pipeline(folder)

    def repro() -> tuple[int, str, int]:
        """Exit code, what was said, and how often anything has trained."""
        done = dvc(folder, "repro")
        log = folder / "trained.log"
        return done.returncode, done.stdout + done.stderr, log.read_text().count("once") if log.exists() else 0

    code, text, trained = repro()
    assert (code, trained) == (0, 1), text

    # Another threshold, and another line of code: the check runs, nothing trains.
    write_params(folder, check_data=of_check_data(max_long={"warn": 0.5}))
    script = folder / "scripts/check_data.py"
    script.write_text(script.read_text(encoding="utf-8") + "\n# edited\n", encoding="utf-8")
    code, text, trained = repro()
    assert (code, trained) == (0, 1), text
    assert "8 checks: 8 ok" in text

    # A leak: the check says so, and what follows does not run.
    write_rows(folder, "train", ["snow", "rain", "hail"])
    code, text, trained = repro()
    assert (code != 0, trained) == (True, 1), text
    assert "same_prompt/sft_test is 1, above params.yaml: check_data.max_same_prompt.fail" in text
    assert "data/sft/test.jsonl line 1: its prompt is that of data/sft/train.jsonl line 3" in text
    assert "failed to reproduce 'check_data'" in text
    assert json.loads((folder / "metrics/check_data.json").read_text())["num_failures"] == 2
    assert (folder / "results/check_data.jsonl").stat().st_size > 0

    write_rows(folder, "train", ["snow", "rain", "wind"])
    code, text, trained = repro()
    assert (code, trained) == (0, 2), text
