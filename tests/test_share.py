"""A finished experiment is pushed to a folder, and read, checked and gone on with in another clone that has trained
nothing."""

import subprocess
import sys
from pathlib import Path

import pytest
from repositories import dvc, environment, write_repository
from test_revisions import PIPELINE, STAGE, call

from posttrain.experiment.revisions import read_experiment

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which a commit and an experiment of another clone were fetched."""
    there, here = tmp_path_factory.mktemp("there"), tmp_path_factory.mktemp("here") / "clone"
    origin, storage = tmp_path_factory.mktemp("origin"), tmp_path_factory.mktemp("storage")
    call(origin, "git", "init", "-q", "--bare", "-b", "main")
    (there / "stage.py").write_text(STAGE)
    (there / "dvc.yaml").write_text(PIPELINE)
    (there / "params.yaml").write_text("dpo: {beta: 0.5}\n")
    (there / ".gitignore").write_text("/results\n/Makefile\n/pyproject.toml\n/constraints.txt\n")
    write_repository(there)
    call(there, "git", "remote", "add", "origin", str(origin))
    make_remote(there, storage)
    dvc(there, "repro", "-q")
    call(there, "git", "add", "-A")
    call(there, "git", "commit", "-qm", "start")
    dvc(there, "exp", "run", "-q", "-S", "dpo.beta=0.05", "-n", "small-beta")
    call(there, "git", "push", "-q", "origin", "main")
    dvc(there, "push", "-q", "--all-commits")
    dvc(there, "exp", "push", "-q", "origin", "small-beta")

    call(here.parent, "git", "clone", "-q", str(origin), str(here))
    dvc(here, "pull", "-q")
    dvc(here, "exp", "pull", "-q", "origin", "small-beta")
    return here


def make_remote(folder: Path, storage: Path) -> None:
    """`make remote URL=…` with the project's Makefile, and the environment that runs this."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    binaries = Path(sys.executable).parent
    call(folder, "make", "-o", f"{binaries}/.installed", f"BIN={binaries}", "remote", f"URL={storage}")


def output(folder: Path, *words: str) -> str:
    run = subprocess.run(words, cwd=folder, env=environment(), check=True, capture_output=True, text=True)
    return run.stdout


def test_nothing_is_left_to_run(shared: Path) -> None:
    said = output(shared, "dvc", "status")
    assert "up to date" in said


def test_results_of_commit_and_experiment_are_there(shared: Path) -> None:
    assert read_experiment("main", shared).results("dpo") == [{"id": "a", "correct": True}]
    assert read_experiment("small-beta", shared).results("dpo") == [{"id": "a", "correct": False}]
    assert read_experiment("small-beta", shared).metrics["evaluate_dpo"]["exact_match"] == 0.05


def test_an_experiment_is_taken_over_without_running_its_stages(shared: Path) -> None:
    dvc(shared, "exp", "apply", "small-beta")
    dvc(shared, "pull", "-q")
    said = output(shared, "dvc", "repro")
    assert "didn't change, skipping" in said and "Running stage" not in said
    assert read_experiment("workspace", shared).params == {"dpo": {"beta": 0.05}}
