"""`posttrain repro-check`: stages that give the same twice, about the same, and not; small ones, and GRPO."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from repositories import dvc, write_repository
from safetensors.torch import save_file
from tiny import write_base, write_prompts

from posttrain.cli import main
from posttrain.experiment.outs import compare_outs, md5_of

DVC_YAML = """
stages:
  draw:
    cmd: python draw.py
    params: [draw]
    deps: [draw.py, data]
    outs: [out]
    metrics: [metrics/draw.json: {cache: false}]
  grpo:
    cmd: python scripts/grpo.py
    params: [grpo]
    deps: [prompts.jsonl, base, scripts/grpo.py, rewards.py]
    outs: [models/grpo, models/grpo.provenance.json]
"""
DRAW = """
import json, os, pathlib, random, time
params = json.loads(pathlib.Path("params.yaml").read_text())["draw"]
here = os.getcwd()
assert pathlib.Path("data/rows.txt").read_text() == "rows"
assert "repro" not in here or os.environ["POSTTRAIN_CACHE"].startswith(here)
noise = params["noise"] * random.SystemRandom().random()
for folder in ("out/inner", "metrics"):
    os.makedirs(folder)
pathlib.Path("out/a.json").write_text(json.dumps([1.0, 2.0 + noise]))
pathlib.Path("out/inner/b.txt").write_text("same")
pathlib.Path("metrics/draw.json").write_text(json.dumps({"loss": 1.5, "train_runtime": time.time()}))
if params["fails"]:
    raise SystemExit("no luck")
"""
REWARDS = """
import os

calls = 0

def lucky(completions, **columns):
    global calls
    calls += 1
    return [os.urandom(1)[0] if calls > 2 else float(len(str(one)) % 7) for one in completions]
"""
GRPO = {
    "model_name_or_path": "base",
    "dataset_name": "prompts.jsonl",
    "output_dir": "models/grpo",
    "provenance_file": "models/grpo.provenance.json",
    "reward_funcs": ["rewards.py:lucky"],
    "reward_workers": 0,
    "num_generations": 4,
    "max_completion_length": 4,
    "per_device_train_batch_size": 8,
    "learning_rate": 0.01,
    "max_steps": 9,
    "save_strategy": "no",
    "report_to": "none",
    "env": {"OMP_NUM_THREADS": "1"},
}


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path) -> Path:
    """A repository of git and DVC, which is the working directory."""
    folder = tmp_path / "pipeline"
    for name in ("data", "scripts", "tmp"):
        (folder / name).mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("tempfile.tempdir", str(folder / "tmp"))
    write_repository(folder)
    shutil.copy(repository / "scripts/grpo.py", "scripts/grpo.py")
    for name, text in {"dvc.yaml": DVC_YAML, "draw.py": DRAW, "data/rows.txt": "rows", "rewards.py": REWARDS}.items():
        Path(name).write_text(text)
    Path(".gitignore").write_text("/out\n/metrics\n/tmp\n")
    write_params()
    return folder


def write_params(noise: float = 0.0, fails: bool = False) -> None:
    Path("params.yaml").write_text(json.dumps({"draw": {"noise": noise, "fails": fails}, "grpo": GRPO}))


def test_equal_to_the_bit_and_to_what_is_recorded(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["repro-check", "draw"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[:2] == ["draw: bit-equal", "  the same to the bit: 3 files"]  # but for the runtime
    assert "dvc.lock knows nothing of this stage" in said
    dvc(pipeline, "repro", "-q", "draw")
    assert main(["repro-check", "draw"]) == 0
    assert "what dvc.lock has recorded, too: out\n" in capsys.readouterr().out
    Path("data/rows.txt").write_text("rows")
    Path("draw.py").write_text(DRAW + "\n")
    assert main(["repro-check", "draw"]) == 0
    assert "not compared with dvc.lock: draw.py has changed since" in capsys.readouterr().out
    Path("draw.py").write_text(DRAW)
    lock = Path("dvc.lock").read_text()
    Path("dvc.lock").write_text(lock.replace(md5_of(Path("out")), "0" * 32 + ".dir"))
    assert main(["repro-check", "draw"]) == 0
    assert "not what dvc.lock has recorded: out\n" in capsys.readouterr().out
    assert not list(Path("tmp").glob("posttrain-repro-*")) and Path("data/rows.txt").read_text() == "rows"


def test_within_the_tolerance_or_not(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_params(noise=1e-5)
    assert main(["repro-check", "draw"]) == 0
    said = capsys.readouterr().out
    assert (
        said.startswith("draw: equal within tolerance\n")
        and "within rtol 0.0001, atol 1e-06: out/a.json: 1 diff" in said
    )
    assert not list(Path("tmp").glob("posttrain-repro-*"))
    assert main(["repro-check", "draw", "--rtol", "0", "--atol", "1e-30"]) == 1
    said = capsys.readouterr().out
    assert (
        said.startswith("draw: diverged\n")
        and "  differs: out/a.json: 1 differ, at most by " in said
        and "([1])" in said
    )
    (kept,) = Path("tmp").glob("posttrain-repro-*")
    assert f"both are in {kept.absolute()}" in said and (kept / "second/out/a.json").is_file()


def test_where_rewards_from_nowhere_part_two_runs(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first two generations get their rewards from the text, the third from the system's random source."""
    write_base(Path("base"))
    write_prompts(Path("prompts.jsonl"))
    assert main(["repro-check", "grpo", "--max_steps", "4"]) == 1
    said = capsys.readouterr().out
    assert said.startswith("grpo: diverged\n  first difference: step 3, ")
    assert "first model.embed_tokens.weight; " in said and "differs: models/grpo/model.safetensors: " in said
    assert "not compared with dvc.lock" not in said and "dvc.lock knows nothing" in said
    (kept,) = Path("tmp").glob("posttrain-repro-*")
    assert json.loads((kept / "first/models/grpo.provenance.json").read_text())["steps"] == 4
    assert not Path("models").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["drwa"], "there is no stage drwa; did you mean draw?"),
        (["draw", "--max_steps", "3"], "--max_steps: the stage draw takes no flags"),
        (["draw", "--params", "none.yaml"], "no such file"),
        (["grpo"], "grpo reads prompts.jsonl, base, which are not here"),
        ([], "the following arguments are required: STAGE"),
    ],
)
def test_mistakes(words: list[str], message: str, pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["repro-check", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_stage_that_fails_shows_its_last_lines(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_params(fails=True)
    assert main(["repro-check", "draw"]) == 2
    said = capsys.readouterr().err
    assert "draw failed with exit code 1; its last lines" in said and "\nno luck" in said


def test_tensors_and_tables(tmp_path: Path) -> None:
    tensors = {"one": torch.arange(4.0), "two": torch.ones(2, dtype=torch.bfloat16)}
    for side, shift in (("a", 0.0), ("b", 3e-5)):
        (tmp_path / side).mkdir()
        save_file(tensors | {"one": tensors["one"] + torch.tensor([0, 0, 0, shift])}, tmp_path / side / "m.safetensors")
        (tmp_path / side / "curve.csv").write_text(f"step,loss\n1,{2 + shift}\n2,\n")
        (tmp_path / side / "manifest.json").write_text(side)
    outs = ["m.safetensors", "curve.csv", "manifest.json"]
    close = compare_outs(tmp_path / "a", tmp_path / "b", outs, rtol=1e-4, atol=0)
    assert close.word == "equal within tolerance" and close.apart == {}
    assert close.close["m.safetensors"].startswith("1 differ, at most by 3e-05, relative 1e-05 (one)")
    assert close.close["curve.csv"].endswith("([0].loss)")
    apart = compare_outs(tmp_path / "a", tmp_path / "b", outs, rtol=1e-6, atol=0)
    assert apart.word == "diverged" and apart.apart.keys() == set(outs)
    (tmp_path / "b/curve.csv").unlink()
    assert (
        compare_outs(tmp_path / "a", tmp_path / "b", outs, 1, 1).apart["curve.csv"] == "only one of the runs wrote it"
    )
