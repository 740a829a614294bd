"""`posttrain status`: what would run and why, in real repositories of git and DVC with small stages."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from repositories import dvc, environment, write_repository

from posttrain.cli import main
from posttrain.experiment.pipeline import Pipeline

DVC_YAML = """
stages:
  make:
    cmd: python make.py make rows.txt
    params: [make]
    deps: [make.py]
    outs: [rows.txt]
  learn:
    cmd: python make.py learn models/learn
    params: [learn]
    deps: [make.py, src/loss.py, rows.txt]
    outs: [models/learn]
    metrics: [metrics/learn.json: {cache: false}]
  test:
    matrix:
      model: [learn]
    cmd: python make.py make results/${item.model}
    params: [test]
    deps: [make.py, 'models/${item.model}']
    outs: ['results/${item.model}']
"""
PARAMS = {"make": {"seed": 1}, "learn": {"beta": 0.5, "save": "no", "words": ["a"]}, "test": {"k": 2}}
SCRIPT = """
import json, pathlib, sys
params = pathlib.Path("params.yaml").read_text()
out = pathlib.Path(sys.argv[2])
out.parent.mkdir(exist_ok=True)
out.write_text(params if sys.argv[1] == "learn" else "same")
if sys.argv[1] == "learn":
    pathlib.Path("metrics").mkdir(exist_ok=True)
    pathlib.Path("metrics/learn.json").write_text(json.dumps({"loss": 1.0}))
"""


def command(*words: str) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def commit() -> None:
    command("git", "add", "-A")
    command("git", "-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "all")


def write_params(**changes: Any) -> None:
    content = json.loads(json.dumps(PARAMS))
    for key, value in changes.items():
        section, _, name = key.partition("__")
        content[section][name] = value
    Path("params.yaml").write_text(json.dumps(content, indent=1))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose stages have run."""
    folder = tmp_path_factory.mktemp("pipeline")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_repository(folder)
        Path("src").mkdir()
        for name, text in {"dvc.yaml": DVC_YAML, "make.py": SCRIPT, "src/loss.py": "a = 1\n"}.items():
            Path(name).write_text(text)
        write_params()
        Path(".gitignore").write_text("/rows.txt\n/models\n/results\n")
        dvc(folder, "repro", "-q")
        commit()
    return folder


@pytest.fixture
def pipeline(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is the working directory."""
    folder = tmp_path / "pipeline"
    command("cp", "-r", str(made), str(folder))
    monkeypatch.chdir(folder)
    return folder


def status(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["status", *words]) == 0
    return capsys.readouterr().out


def test_nothing_to_do(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(capsys, "--check") == "Nothing to run: 3 stages are up to date.\n"


def test_keys_files_and_what_follows(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_params(learn__beta=0.05, learn__words=["a", "b"], learn__new=True)
    Path("src/loss.py").write_text("a = 2\n")
    commit()
    assert status(capsys) == (
        "Would run (1 of 3 stages):\n"
        "  learn\n"
        "    params  learn.beta 0.5 → 0.05\n"
        '    params  learn.words ["a"] → ["a", "b"]\n'
        "    params  learn.new unset → true\n"
        "    code    src/loss.py modified\n"
        "Then, if what they read changes: test@learn\n"
        "Up to date: make\n"
    )
    assert main(["status", "--check"]) == 1
    said = json.loads(status(capsys, "--format", "json"))
    assert said["findings"][0]["reasons"][0] == ["params", "learn.beta", "0.5 → 0.05"]
    assert said["findings"][0]["followers"] == ["test@learn"] and said["up_to_date"] == ["make", "test@learn"]


def test_outs_that_are_gone(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("models/learn").unlink()
    text = status(capsys)
    assert "    writes  models/learn missing, and in the cache: `dvc checkout`\n" in text
    assert "    reads   models/learn missing\n" in text  # what comes after it
    command("rm", "-r", ".dvc/cache")
    assert "models/learn not in the cache: `dvc pull`, or it is made again" in status(capsys)
    Path("rows.txt").write_text("by hand")
    assert "  learn\n    reads   rows.txt modified\n" in status(capsys)


def test_a_frozen_stage_is_no_silence(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """DVC says "didn't change" of it."""
    dvc(pipeline, "freeze", "learn")
    commit()
    assert status(capsys) == "Nothing to run: 3 stages are up to date.\n"
    write_params(learn__beta=0.05)
    commit()
    words = ["dvc", "status", "--json"]
    assert json.loads(subprocess.run(words, env=environment(), capture_output=True, text=True, check=True).stdout) == {}
    assert status(capsys, "--check").startswith(
        "!! FROZEN AND OUT OF DATE: learn. DVC calls it unchanged and will not run it:\n"
        "     params  learn.beta 0.5 → 0.05\n"
        "     `dvc unfreeze learn` lets it run\n\n"
        "Nothing to run: 2 stages are up to date.\n"
    )


def test_a_tree_that_no_commit_holds(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("metrics/learn.json").write_text("{}")  # a stage writes it
    Path("src/more.py").write_text("")
    Path("src/loss.py").write_text("a = 3\n")
    text = status(capsys)
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    assert text.splitlines()[:2] == [
        f"!! DIRTY TREE: src/loss.py not as in {head.strip()}; a result from it has no commit to come back to",
        "!! UNTRACKED CODE: src/more.py; git knows nothing of it: `git add` it",
    ]


def test_a_command_or_a_list_that_has_changed(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = DVC_YAML.replace("src/loss.py, rows.txt", "rows.txt, params.yaml").replace(
        "learn models/learn", "learn models/learn 2"
    )
    Path("dvc.yaml").write_text(text + "  more:\n    cmd: python make.py make more.txt\n    outs: [more.txt]\n")
    text = status(capsys)
    assert "    stage   its command python make.py learn models/learn → python make.py learn models/learn 2\n" in text
    assert (
        "    stage   src/loss.py no longer in its list\n" in text
        and "    reads   params.yaml new in its list\n" in text
    )
    assert "  more\n    stage   it has never run: dvc.lock knows nothing of it\n" in text


def test_where_an_interrupted_run_would_go_on(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The repository's own script, of which a checkpoint of the same command lies there; and of another one."""
    from posttrain.experiment.params import stage_config
    from posttrain.runs import what_it_depends_on

    Path("scripts").mkdir()
    Path("scripts/sft.py").write_text("import posttrain.training\n")
    section = {"model_name_or_path": "models/base", "dataset_name": "rows.jsonl", "output_dir": "models/sft"}
    section |= {"work_dir": "work/sft", "max_steps": 90}
    Path("params.yaml").write_text(json.dumps(PARAMS | {"sft": section}))
    stage = "  sft:\n    cmd: python scripts/sft.py\n    params: [sft]\n    deps: [scripts/sft.py]\n"
    Path("dvc.yaml").write_text(f"{DVC_YAML}{stage}    outs: [models/sft]\n")
    about = what_it_depends_on(stage_config("sft", [])[0])
    Path("work/sft/abc/checkpoint-30").mkdir(parents=True)
    Path("work/sft/abc/run.json").write_text(json.dumps(about))
    assert "    goes on from work/sft/abc/checkpoint-30 (step 30 of 90)\n" in status(capsys)
    section["learning_rate"] = 0.5
    Path("params.yaml").write_text(json.dumps(PARAMS | {"sft": section}))
    assert "goes on from" not in status(capsys)


def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["status"]) == 2
    assert "this folder is in no DVC repository" in capsys.readouterr().err
    assert main(["status", "--chek"]) == 2
    assert "did you mean --check?" in capsys.readouterr().err
    write_repository(tmp_path)
    Path("dvc.yaml").write_text("stages: {a: {cmd: a, dps: []}}\n")
    assert main(["status"]) == 2
    assert "DVC: './dvc.yaml' validation failed" in capsys.readouterr().err


def test_the_stages_of_this_repository(repository: Path) -> None:
    stages = Pipeline(repository).stages
    assert (
        stages["evaluate@dpo"].command == "python scripts/evaluate.py dpo"
        and "models/dpo" in stages["evaluate@dpo"].deps
    )
    assert [name for name, stage in stages.items() if stage.trains(repository)] == [
        "sft",
        "reward",
        "dpo",
        "grpo",
        "rloo",
    ]
    assert stages["sft"].tracked == ("metrics/sft.json", "plots/sft.csv") and "models/sft" in stages["sft"].outs
