"""`make smoke`: every stage runs, in another folder than the tree's, and a failure is told and leaves its traceback.

It takes about 20 s with two cores, most of them for imports.
"""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from posttrain.config.yaml_files import FastLoader

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def smoke(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """scripts/smoke.py as a module, with what it and the stages set put back afterwards."""
    spec = importlib.util.spec_from_file_location("smoke", ROOT / "scripts/smoke.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", sys.argv)
    for name in ("POSTTRAIN_CACHE", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    yield module


def written() -> dict[str, float]:
    """When each file that stages write was last changed."""
    folders = ("data", "models", "metrics", "plots", "results", "work")
    return {str(path): path.stat().st_mtime for name in folders for path in (ROOT / name).rglob("*")}


def test_every_stage_runs_and_the_tree_stays_as_it_is(
    smoke: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = written()
    assert smoke.smoke(tmp_path) == 0
    assert written() == before
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    pipeline = yaml.load((ROOT / "dvc.yaml").read_text(encoding="utf-8"), FastLoader)["stages"]
    models = pipeline["evaluate"]["matrix"]["model"]
    last = [f"evaluate {model}" for model in models] + ["samples", "check_models"]
    wanted = [*(name for name in pipeline if name not in ("evaluate", "samples", "check_models")), *last]
    assert [" ".join(line[:-2]) for line in lines[1:-1]] == wanted
    assert {line[-1] for line in lines[1:-1]} == {"OK"}
    assert float(lines[-1][1]) >= sum(float(line[-2]) for line in lines[1:-1]) - 1
    assert {path.name for path in (tmp_path / "models").iterdir() if path.is_dir()} == {"base", "reward", *models}
    assert len((tmp_path / "metrics/sft.json").read_text()) > 100


def test_overrides_name_sections_and_keys_that_are_there(smoke: ModuleType) -> None:
    params = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"), FastLoader)
    assert set(smoke.OVERRIDES) == set(params)
    for name, section in smoke.OVERRIDES.items():
        assert set(section) - set(params[name]) <= {"warmup_steps"}


def test_a_failure_is_told_in_its_row(
    smoke: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(smoke.OVERRIDES, "dpo", {"bta": 1})
    monkeypatch.setattr(smoke, "stages", lambda: [("dpo", ["scripts/dpo.py"]), ("sft", ["scripts/sft.py"])])
    assert smoke.smoke(tmp_path) == 2
    _, dpo, sft, _ = capsys.readouterr().out.splitlines()
    assert dpo.endswith("failed: params.yaml: dpo.bta: no such key; did you mean beta?")
    assert "failed: dataset_name: data/embedded/sft does not exist" in sft  # no stage has made it
    assert "Traceback" in (tmp_path / "dpo.log").read_text(encoding="utf-8")
