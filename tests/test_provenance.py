"""What stands beside a model about its origin: files and their hashes, code, packages, machine; and a line a step."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import run, run_policy, write_base, write_preference, write_prompts, write_sft

from posttrain import checkout
from posttrain.experiment.steps import first_difference
from posttrain.provenance import deterministic, find
from posttrain.step_record import digest_of_tensor, read_steps


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "model")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read(folder: Path) -> dict[str, Any]:
    file = find(folder)
    assert file is not None
    return dict(json.loads(file.read_text(encoding="utf-8")))


def test_what_stands_in_it_is_true(base: Path, tmp_path: Path) -> None:
    rows, out = write_sft(tmp_path / "rows.jsonl"), tmp_path / "out"
    run("sft", base, rows, out, "--test_split_size", "0.25", "--eval_strategy", "steps", "--eval_steps", "2")
    about = read(out)
    manifest = json.loads((out / "manifest.json").read_text())["files"]
    assert about["model"]["files"] == manifest and not {"provenance.json", "README.md"} & manifest.keys()
    assert {name: one["sha256"] for name, one in about["base_model"]["files"].items()} == {
        path.name: sha256(path) for path in base.iterdir()
    }
    assert about["data"]["train"]["files"] == {str(rows): {"sha256": sha256(rows), "size": rows.stat().st_size}}
    assert about["data"]["train"]["counts"]["rows"] == 12 and about["data"]["test"]["counts"]["rows"] == 4
    assert about["chat_template"]["sha256"] == sha256(out / "chat_template.jinja")
    assert about["params"]["set"]["max_steps"] == 3 and "weight_decay" not in about["params"]["set"]
    assert about["seeds"]["seed"] == 42 and about["steps"] == 3 and about["resumed_from"] is None
    assert about["packages"]["torch"] == torch.__version__ and len(about["all_packages"]) > 50
    assert about["metrics"]["loss"] == json.loads((out / "trainer_state.json").read_text())["log_history"][-3]["loss"]
    assert about["hardware"]["threads"] == 1 and about["started"] <= about["ended"]
    card = (out / "README.md").read_text()
    assert sha256(rows) in card and sha256(base / "model.safetensors") in card
    assert not any(text in card for text in (str(tmp_path), about["hardware"]["cpu"], about["code"]["sha256"]))


def test_an_adapter_on_an_adapter_s_model_and_rewards(base: Path, tmp_path: Path) -> None:
    run("sft", base, write_sft(tmp_path / "rows.jsonl"), tmp_path / "first", "--use_peft", "--max_steps", "1")
    beside = tmp_path / "second.provenance.json"
    words = ("--provenance_file", str(beside), "--max_steps", "1")
    run_policy("grpo", tmp_path / "first", write_prompts(tmp_path / "prompts.jsonl"), tmp_path / "second", *words)
    assert not (tmp_path / "second/provenance.json").exists() and find(tmp_path / "second") == beside
    about = read(tmp_path / "second")
    assert about["base_model"]["files"].keys() >= {"adapter_model.safetensors", "adapter_config.json"}
    own = about["base_model"]["base"]
    assert own["name"] == str(base) and own["files"]["model.safetensors"]["sha256"] == sha256(
        base / "model.safetensors"
    )
    reward = tmp_path / "reward.py"
    assert about["rewards"]["files"] == {str(reward): {"sha256": sha256(reward), "size": reward.stat().st_size}}
    assert "test" not in about["data"] and about["method"] == "grpo"


def test_a_reference_of_its_own_and_a_run_that_goes_on(base: Path, tmp_path: Path) -> None:
    other, rows = write_base(tmp_path / "other", seed=2), write_preference(tmp_path / "rows.jsonl")
    words = ("--ref_model_name_or_path", str(other), "--save_strategy", "steps", "--save_steps", "2")
    run("dpo", base, rows, tmp_path / "out", *words)
    whole = read(tmp_path / "out")
    assert whole["reference"]["files"]["model.safetensors"]["sha256"] == sha256(other / "model.safetensors")
    run("dpo", base, rows, tmp_path / "out", *words, "--resume_from_checkpoint", str(tmp_path / "out/checkpoint-2"))
    resumed = read(tmp_path / "out")
    assert whole["resumed_from"] is None and resumed["resumed_from"] == "checkpoint-2" and resumed["steps"] == 3
    of_both = [deterministic(about) for about in (whole, resumed)]
    for about in of_both:
        about["params"].pop("resume_from_checkpoint", None)
    assert of_both[0] == of_both[1]


def test_without_git_nothing_is_missing_but_git(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    run("sft", base, write_sft(tmp_path / "rows.jsonl"), tmp_path / "out", "--max_steps", "1")
    about = read(tmp_path / "out")
    assert about["code"]["git"] is None and about["directory"]["git"] is None and len(about["code"]["sha256"]) == 64


def commit(folder: Path) -> None:
    for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "all"]):
        subprocess.run(["git", *words], cwd=folder, check=True)


def test_what_a_checkout_holds_that_no_commit_does(tmp_path: Path) -> None:
    assert checkout.state_of(tmp_path) is None or tmp_path.is_relative_to(checkout.root_of(tmp_path) or "/nowhere")
    (tmp_path / "dvc.yaml").write_text("stages: {a: {cmd: a, metrics: ['m/${item}.json': {cache: false}]}}\n")
    (tmp_path / "m").mkdir()
    for name in ("m/a.json", "dvc.lock", "code.py", "notes.txt"):
        (tmp_path / name).write_text("1")
    commit(tmp_path)
    clean = checkout.state_of(tmp_path)
    assert clean is not None and not clean["dirty"] and clean["diff_sha256"] is None and len(clean["commit"]) == 40
    for name in ("m/a.json", "dvc.lock"):  # a stage has run
        (tmp_path / name).write_text("2")
    (tmp_path / "new.txt").write_text("no code")
    assert checkout.state_of(tmp_path) == clean
    (tmp_path / "code.py").write_text("2")
    (tmp_path / "new.py").write_text("1")
    dirty = checkout.state_of(tmp_path)
    assert dirty is not None and dirty["dirty"] and dirty["changed"] == ["code.py"] and dirty["untracked"] == ["new.py"]
    (tmp_path / "new.py").write_text("2")
    again = checkout.state_of(tmp_path)
    assert again is not None and again["diff_sha256"] != dirty["diff_sha256"]
    assert checkout.changed_since(tmp_path, clean["commit"], "code.py") == ["code.py"]


def test_a_line_a_step_says_where_two_runs_part(base: Path, tmp_path: Path) -> None:
    rows, files = write_sft(tmp_path / "rows.jsonl"), {}
    for name, more in {"a": [], "b": [], "rate": ["--lr_scheduler_type", "constant"], "seed": ["--seed", "1"]}.items():
        files[name] = tmp_path / name / "steps.jsonl"
        run("sft", base, rows, tmp_path / name / "out", "--record_steps", str(files[name]), *more)
    steps = read_steps(files["a"])
    assert [line["step"] for line in steps] == [0, 1, 2, 3]
    state = json.loads((tmp_path / "a/out/trainer_state.json").read_text())["log_history"]
    assert [line["loss"] for line in steps[1:]] == pytest.approx([line["loss"] for line in state if "loss" in line])
    saved = load_file(tmp_path / "a/out/model.safetensors")
    assert steps[3]["tensors"] == {name: digest_of_tensor(saved[name]) for name in steps[3]["tensors"]}
    assert first_difference(files["a"], files["b"]) is None
    # The first step has the same rate; after the second, the weights are others, all of them.
    number = len(steps[0]["tensors"])
    told = f"step 2, the weights: first model.embed_tokens.weight; {number} of {number} tensors after it"
    assert first_difference(files["a"], files["rate"]) == f"first difference: {told}"
    assert str(first_difference(files["a"], files["seed"])).startswith(
        "first difference: step 1, the tokens of its batch"
    )


def test_a_digest_sees_bits_and_places() -> None:
    tensor = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    same, moved, signed = tensor.clone(), tensor.flip(0), torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    assert digest_of_tensor(tensor) == digest_of_tensor(same)
    assert len({digest_of_tensor(one) for one in (tensor, moved, signed, tensor.bfloat16())}) == 4
    assert digest_of_tensor(torch.tensor([0.0])) != digest_of_tensor(torch.tensor([-0.0]))
