"""Sweeps and the commands of DVC over a small pipeline of its own: real repositories, queues and workers."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas
import pytest
from repositories import dvc, write_repository

from posttrain import gpu_slots
from posttrain.cli import main
from posttrain.errors import UserError
from posttrain.experiment.revisions import experiment_names
from posttrain.experiment.sweep import queue
from posttrain.experiment.sweep.grid import check_jobs, check_stages, read_grid
from posttrain.experiment.sweep.queue import worker_environment
from posttrain.machine import num_cores

ROOT = Path(__file__).resolve().parent.parent
STAGE = f"""
import pathlib, sys, yaml
sys.path[:0] = [{str(ROOT / "tests")!r}, {str(ROOT / "src")!r}]
from experiment_folders import write_experiment
dpo = yaml.safe_load(open("params.yaml"))["dpo"]
if dpo["seed"] > 8:
    sys.exit("this seed is unlucky")
text = pathlib.Path("params.yaml").read_text()
write_experiment(pathlib.Path(), 0.5 + dpo["beta"] / 2, dpo["seed"], draws=dpo["seed"], num_rows=100)
pathlib.Path("params.yaml").write_text(text)
pathlib.Path("plots").mkdir(exist_ok=True)
pathlib.Path("plots/dpo.csv").write_text(f"step,loss\\n1,2.0\\n2,{{dpo['beta']}}\\n")
"""
PIPELINE = """
stages:
  dpo:
    cmd: python stage.py
    params: [dpo]
    deps: [stage.py]
    outs: [results/evaluate_dpo.jsonl]
    metrics: [{metrics/dpo.json: {cache: false}}, {metrics/evaluate_dpo.json: {cache: false}}]
    plots: [{plots/dpo.csv: {cache: false, x: step}}]
  evaluate:
    matrix: {model: [dpo]}
    cmd: echo ${item.model}
"""
PARAMS = """
dpo: {model_name_or_path: org/model, dataset_name: org/rows, output_dir: o, beta: 0.1, learning_rate: 0.001, seed: 0}
evaluate: {seed: 0}
"""


def call(folder: Path, *words: str) -> str:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, env=worker_environment())
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository in which no stage has run."""
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    return tmp_path


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A repository whose pipeline has run."""
    root = tmp_path_factory.mktemp("repository")
    (root / "stage.py").write_text(STAGE)
    (root / "dvc.yaml").write_text(PIPELINE.partition("  evaluate:")[0])
    (root / "params.yaml").write_text(PARAMS)
    (root / ".gitignore").write_text("/results\n")
    write_repository(root)
    dvc(root, "repro", "-q")
    call(root, "git", "add", "-A")
    call(root, "git", "commit", "-qm", "start")
    yield root
    call(root, "dvc", "queue", "stop", "--kill")


def test_a_sweep_and_what_is_made_of_it(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(repository)
    monkeypatch.setenv("PATH", os.environ["PATH"].replace(str(Path(sys.executable).parent), "/nowhere"))
    assert main(["sweep", "dpo.beta=0.4", "dpo.seed=1,2,9", "--jobs", "2"]) == 1
    out, err = capfd.readouterr()
    assert set(experiment_names()) == {"seed-1", "seed-2"}
    assert "seed-9 failed" in err and "this seed is unlucky" in err
    head, row, *_ = out.splitlines()
    assert head.split()[0] == "runs" and row.split()[0] == "2" and "± " in row
    values = [call(repository, "git", "show", f"{name}:metrics/dpo.json") for name in revisions()]
    assert [json.loads(text)["eval_loss"] for text in values] == pytest.approx([0.3, 0.3])
    assert "next: posttrain compare workspace seed-1,seed-2" in out

    # The same words again: what is taken has a number behind it, and what failed stands in the way until it is removed.
    assert [run.name for run in read_grid(["dpo.seed=1,2,3"])] == ["seed-1.2", "seed-2.2", "seed-3"]
    assert main(["sweep", "dpo.seed=9"]) == 2
    assert "the queue still holds a seed-9 of before" in capfd.readouterr().err

    # Experiments beside each other: DVC's commands, and this project's.
    assert "0.4" in call(repository, "dvc", "exp", "show", "--csv", "--no-pager")
    assert "exact_match" in call(repository, "dvc", "metrics", "diff", "HEAD", revisions()[0])
    call(repository, "dvc", "plots", "diff", "HEAD", revisions()[0])
    assert "plots" in (repository / "dvc_plots/index.html").read_text()
    assert main(["compare", "HEAD", "seed-1"]) == 0
    text = capfd.readouterr().out
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert lines["dpo.beta"].split() == ["dpo.beta", "0.1", "0.4"]
    assert lines["exact_match"].split()[-1] in ("better", "noise") and " to " in lines["exact_match"]
    assert "differ" not in text.partition("dpo.beta")[2].partition("exact_match")[0]  # nothing but params
    assert main(["compare", "HEAD", "seed-*"]) == 0
    assert "One side is a single run" in capfd.readouterr().out
    assert main(["compare", "HEAD", "sed-1"]) == 2
    assert "did you mean seed-1?" in capfd.readouterr().err

    # All of them, in one line of pandas.
    assert main(["experiments", "--output", "results/experiments.csv"]) == 0
    assert "dpo.beta" in capfd.readouterr().out
    table = pandas.read_csv("results/experiments.csv")
    assert list(table["name"][:2]) == ["workspace", "HEAD"] and len(table) == 4
    assert set(table[table["dpo.beta"] == 0.4]["dpo.seed"]) == {1, 2}
    assert table.groupby("dpo.beta")["dpo.eval_loss"].mean()[0.4] == pytest.approx(0.3)
    assert "evaluate_dpo.exact_match" in table and "dpo.learning_rate" not in table  # which is the same in all
    rows = pandas.read_json("results/evaluate_dpo.jsonl", lines=True)
    stated = json.loads(Path("metrics/evaluate_dpo.json").read_text())["exact_match"]
    assert rows["correct"].mean() == pytest.approx(stated)


def revisions() -> list[str]:
    listed = subprocess.run(
        ["git", "for-each-ref", "--format=%(refname)", "refs/exps/"], capture_output=True, text=True
    )
    return [ref for ref in listed.stdout.split() if "/seed-" in ref]


class SomeQueue:
    """A queue that shows one state after the other, and then the last one for ever."""

    def __init__(self, *shown: dict[str, str]):
        self.shown = list(shown)

    def states(self) -> dict[str, str]:
        return self.shown.pop(0) if len(self.shown) > 1 else self.shown[0]


def test_what_was_taken_out_of_the_queue_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "_SECONDS_BETWEEN_LOOKS", 0.01)
    monkeypatch.setattr(queue, "_SECONDS_IN_NO_LIST", 0.1)
    # a is on its way from the queue to a worker for a moment; b is removed.
    shown = SomeQueue({"a": "Queued", "b": "Queued"}, {"b": "Queued"}, {"a": "Running"}, {"a": "Success"})
    assert queue._wait(shown, ["a", "b"], lambda: None) == {"a": "Success", "b": "Removed"}


def test_workers_that_left_just_as_they_were_wanted_are_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "_SECONDS_BETWEEN_LOOKS", 0.01)
    monkeypatch.setattr(queue, "_SECONDS_WITHOUT_WORKER", 0.05)
    shown, starts = SomeQueue({"a": "Queued"}), []

    def start() -> None:
        starts.append(1)
        if len(starts) == 2:
            shown.shown = [{"a": "Running"}, {"a": "Success"}]

    assert queue._wait(shown, ["a"], start) == {"a": "Success"}
    assert len(starts) == 2


# -- grids


def test_a_grid_is_every_combination_in_order(folder: Path) -> None:
    grid = read_grid(["dpo.beta=0.05,0.1", "dpo.seed=0..2"], folder)
    assert [run.settings for run in grid] == [
        [f"dpo.beta={beta}", f"dpo.seed={seed}"] for beta in ("0.05", "0.1") for seed in (0, 1, 2)
    ]
    assert grid[0].name == "beta-0.05-seed-0" and len({run.name for run in grid}) == 6
    assert read_grid(["dpo.beta=0.05,0.1 dpo.seed=0..2"], folder) == grid  # as make hands it over


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (["dpo.seed=1,2", "evaluate.seed=3"], ["seed-1", "seed-2"]),
        (["dpo.seed=1,2", "evaluate.seed=3,4"], ["dpo.seed-1-evaluate.seed-3"]),
        (["+dpo.loss_type=[sigmoid],[ipo,sft]"], ["loss_type-sigmoid", "loss_type-ipo-sft"]),
        (["dpo.learning_rate=1e-5,1e-4"], ["learning_rate-1e-5", "learning_rate-1e-4"]),
        (["dpo.seed=1,1"], ["seed-1"]),
    ],
)
def test_names_are_short_and_such_that_git_takes_them(folder: Path, settings: list[str], names: list[str]) -> None:
    found = [run.name for run in read_grid(settings, folder)]
    assert found[: len(names)] == names
    for name in found:
        subprocess.run(["git", "check-ref-format", f"refs/exps/ab/cd/{name}"], check=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["dpo.betta=1"], r"params\.yaml has no such key \(\+dpo\.betta=… adds .*did you mean dpo\.beta\?"),
        (["evaluate.sed=1"], r"did you mean evaluate\.seed\?"),
        (["nothing.seed=1"], "has no such key"),
        (["dpo.beta=large"], "'large' is not a number"),
        (["dpo.beta=-1"], "is too small"),
        (["+dpo.no_such_flag=1"], "no such key"),
        (["dpo.beta"], "wanted a key and its values"),
        (["dpo.beta=0.1,,0.2"], "a value is missing before or behind a comma"),
        (["dpo.seed=3..1"], "from a smaller to a larger number"),
        (["dpo.seed=0..99", "evaluate.seed=0..99"], "that makes 10,000 combinations"),
        (["dpo.beta=[0.1"], "that is no value of YAML"),
    ],
)
def test_mistakes_are_told_before_anything_is_queued(folder: Path, settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_grid(settings, folder)


def test_stages_exist(folder: Path) -> None:
    check_stages(["dpo", "evaluate", "evaluate@dpo"], folder)
    with pytest.raises(UserError, match="did you mean evaluate@dpo"):
        check_stages(["evaluate@dp"], folder)


def test_how_many_run_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    assert check_jobs(None) == 3 and check_jobs(5) == 5
    assert worker_environment()[gpu_slots.SLOTS] == "auto"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert check_jobs(None) == min(2, num_cores())
    assert gpu_slots.SLOTS not in worker_environment()
    with pytest.raises(UserError, match="--jobs 0"):
        check_jobs(0)


def test_a_dry_sweep_lists(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    assert main(["sweep", "dpo.beta=0.05,0.1", "--dry", "--stages", "evaluate@dpo"]) == 0
    assert capsys.readouterr().out.split() == ["beta-0.05", "dpo.beta=0.05", "beta-0.1", "dpo.beta=0.1"]


# -- where the code comes from


def test_scripts_import_the_code_that_stands_beside_them(tmp_path: Path) -> None:
    """DVC runs a queued experiment in a copy of its commit, while the installed package is the working tree's."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "src/posttrain").mkdir(parents=True)
    (tmp_path / "src/posttrain/__init__.py").write_text("raise SystemExit('the code of the copy')")
    for script in sorted((ROOT / "scripts").glob("*.py")):
        if script.stem == "smoke":
            continue
        (tmp_path / "scripts" / script.name).write_text(script.read_text())
        command = [sys.executable, f"scripts/{script.name}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.stderr == "the code of the copy\n", script.name
