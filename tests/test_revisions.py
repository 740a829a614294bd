"""States of the pipeline are read from the working tree, from git, from DVC's cache, and from folders."""

import json
import subprocess
from pathlib import Path

import pytest
from repositories import dvc, write_repository

from posttrain.errors import UserError
from posttrain.experiment.revisions import experiment_names, flat, read_experiment

STAGE = """
import json, pathlib, yaml
beta = yaml.safe_load(open("params.yaml"))["dpo"]["beta"]
for folder in ("metrics", "plots", "results"):
    pathlib.Path(folder).mkdir(exist_ok=True)
pathlib.Path("metrics/evaluate_dpo.json").write_text(json.dumps({"exact_match": beta}))
pathlib.Path("plots/dpo.csv").write_text(f"step,loss,eval_loss\\n1,{beta},\\n2,,0.25\\n")
pathlib.Path("results/evaluate_dpo.jsonl").write_text(json.dumps({"id": "a", "correct": beta > 0.1}) + "\\n")
"""
PIPELINE = """
stages:
  dpo:
    cmd: python stage.py
    params: [dpo]
    deps: [stage.py]
    outs: [results/evaluate_dpo.jsonl]
    metrics: [{metrics/evaluate_dpo.json: {cache: false}}]
    plots: [{plots/dpo.csv: {cache: false}}]
"""


def call(folder: Path, *words: str) -> None:
    subprocess.run(words, cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One commit with beta 0.5, and an experiment with 0.05."""
    root = tmp_path_factory.mktemp("repository")
    (root / "stage.py").write_text(STAGE)
    (root / "dvc.yaml").write_text(PIPELINE)
    (root / "params.yaml").write_text("dpo: {beta: 0.5, learning_rate: 1e-4}\n")
    (root / ".gitignore").write_text("/results\n")
    write_repository(root)
    dvc(root, "repro", "-q")
    call(root, "git", "add", "-A")
    call(root, "git", "commit", "-qm", "start")
    dvc(root, "exp", "run", "-q", "-S", "dpo.beta=0.05", "-n", "small-beta")
    return root


def test_the_workspace_is_what_the_files_say(repository: Path) -> None:
    found = read_experiment("workspace", repository)
    assert found.revision is None
    assert found.params == {"dpo": {"beta": 0.05, "learning_rate": 1e-4}}
    assert found.metrics == {"evaluate_dpo": {"exact_match": 0.05}}
    assert found.models == ["dpo"]
    assert found.results("dpo") == [{"id": "a", "correct": False}]


def test_a_revision_is_read_from_git_and_from_the_cache(repository: Path) -> None:
    found = read_experiment("main", repository)
    assert found.params["dpo"]["beta"] == 0.5
    assert found.metrics == {"evaluate_dpo": {"exact_match": 0.5}}
    assert found.curves == {"dpo": [{"step": 1, "loss": 0.5}, {"step": 2, "eval_loss": 0.25}]}
    assert found.results("dpo") == [{"id": "a", "correct": True}]
    assert found.file("nowhere.txt") is None
    assert found.lock["stages"]["dpo"]["params"]["params.yaml"]["dpo"]["beta"] == 0.5


def test_an_experiment_goes_by_its_name(repository: Path) -> None:
    assert experiment_names(repository) == ["small-beta"]
    found = read_experiment("small-beta", repository)
    assert found.params["dpo"]["beta"] == 0.05
    assert found.results("dpo") == [{"id": "a", "correct": False}]


def test_a_folder_is_read_as_it_lies(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics/dpo.json").write_text(json.dumps({"loss": 1.0}))
    found = read_experiment(str(tmp_path), repository)
    assert found.metrics == {"dpo": {"loss": 1.0}}
    assert found.params == found.lock == found.curves == {}
    with pytest.raises(UserError, match=r"results/evaluate_dpo.jsonl does not exist there; the stage evaluate@dpo"):
        found.results("dpo")


def test_an_unknown_name_suggests_the_nearest(repository: Path) -> None:
    with pytest.raises(UserError, match=r"'smal-beta' is no experiment.*did you mean small-beta\?"):
        read_experiment("smal-beta", repository)
    with pytest.raises(UserError, match="'--all' is no experiment"):
        read_experiment("--all", repository)


def test_results_that_the_cache_lacks_are_told(repository: Path) -> None:
    found = read_experiment("main", repository)
    md5 = found.lock["stages"]["dpo"]["outs"][-1]["md5"]
    assert found.lock["stages"]["dpo"]["outs"][-1]["path"].startswith("results/")
    kept = repository / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    aside = kept.rename(repository / "aside")
    try:
        with pytest.raises(UserError, match=r"main: results/evaluate_dpo.jsonl is not in DVC's cache here"):
            found.results("dpo")
    finally:
        aside.rename(kept)


def test_what_was_not_run_again_counts_for_nothing(tmp_path: Path) -> None:
    """DPO trained anew alone: its evaluation, and the page made from that, are of the model before."""
    stages = {
        "dpo": {"outs": [{"path": "models/dpo", "md5": "new"}, {"path": "metrics/dpo.json", "md5": "1"}]},
        "evaluate@dpo": {
            "deps": [{"path": "models/dpo", "md5": "old"}],
            "outs": [
                {"path": "metrics/evaluate_dpo.json", "md5": "2"},
                {"path": "results/evaluate_dpo.jsonl", "md5": "3"},
            ],
        },
        "samples": {"deps": [{"path": "results/evaluate_dpo.jsonl", "md5": "3"}], "outs": [{"path": "x", "md5": "4"}]},
        "sft": {"deps": [{"path": "scripts/sft.py", "md5": "5"}]},
    }
    (tmp_path / "dvc.lock").write_text(json.dumps({"stages": stages}))
    (tmp_path / "metrics").mkdir()
    for name in ("dpo", "evaluate_dpo"):
        (tmp_path / f"metrics/{name}.json").write_text("{}")
    found = read_experiment(str(tmp_path), tmp_path)
    assert found.stale == ("evaluate@dpo", "samples")
    assert list(found.metrics) == ["dpo"] and found.models == []


def test_flat_names_sections_and_keys() -> None:
    assert flat({"dpo": {"beta": 0.5, "env": {}}, "seed": 1}) == {"dpo.beta": 0.5, "dpo.env": {}, "seed": 1}
