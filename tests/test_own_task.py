"""`prepare` with rows of one's own: from files, and from a hub on loopback; and the recipes that use it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers_data import write_jsonl
from hub_content import commit_hash
from hub_server import Hub
from hub_session import hub  # noqa: F401 (a fixture)
from manual import write_manual
from safetensors import safe_open

from posttrain.errors import UserError
from posttrain.experiment import recipes
from posttrain.experiment.conversions import (
    explicit_prompt,
    gsm8k_instructed,
    gsm8k_pairs,
    gsm8k_problem,
    gsm8k_solution,
)
from posttrain.experiment.own_task import SetSettings, commit_of, read_own, write_sets

ROOT = Path(__file__).resolve().parent.parent
SHAPE = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
SHAPE |= {"num_attention_heads": 2, "num_key_value_heads": 1}


def question(number: int) -> dict[str, str]:
    return {
        "question": f"What is {number}+1?",
        "answer": f"{number}+1=<<{number}+1={number + 1}>>{number + 1}\n#### {number + 1}",
    }


def solutions(number: int) -> dict[str, Any]:
    """As in the file of model solutions: right, wrong, right, right."""
    kinds = {"175b_verification": True, "6b_verification": False, "175b": True, "6b": True}
    texts = {name: {"solution": f"{name} says {number}", "is_correct": right} for name, right in kinds.items()}
    return {"question": f"What is {number}+1?", "ground_truth": "…", **texts}


def section(folder: Path, **changed: Any) -> dict[str, Any]:
    """prepare's section, over two files in a folder."""
    write_jsonl(folder / "questions.jsonl", [question(number) for number in range(10)])
    write_jsonl(folder / "solutions.jsonl", [solutions(number) for number in range(10)])

    def splits(name: str, convert: str) -> dict[str, Any]:
        bounds = {"train": "train[4:]", "validation": "train[:2]", "test": "train[2:4]"}
        entries = {split: [{"path": str(folder / name), "split": part}] for split, part in bounds.items()}
        return {"convert": convert, **entries}

    sets = {
        "sft": splits("questions.jsonl", "gsm8k_solution"),
        "preference": splits("solutions.jsonl", "gsm8k_pairs"),
        "prompts": splits("questions.jsonl", "gsm8k_problem"),
    }
    return {"task": "own", "folder": "data/mine", "base_model": None, **SHAPE, **sets, **changed}


def prepare(folder: Path, content: dict[str, Any], **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "params.yaml").write_text(yaml.safe_dump({"prepare": content}), encoding="utf-8")
    words = [sys.executable, str(ROOT / "scripts/prepare.py")]
    return subprocess.run(words, cwd=folder, env=os.environ | environment, capture_output=True, text=True)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_conversions_by_hand() -> None:
    user = {"role": "user", "content": "What is 3+1?"}
    answer = "3+1=<<3+1=4>>4\n#### 4"
    assert list(gsm8k_solution(question(3))) == [{"messages": [user, {"role": "assistant", "content": answer}]}]
    assert list(gsm8k_problem(question(3))) == [{"prompt": [user], "solution": answer}]
    # Three right ones and one wrong one make one pair.
    chosen, rejected = (
        [{"role": "assistant", "content": f"{name} says 3"}] for name in ("175b_verification", "6b_verification")
    )
    assert list(gsm8k_pairs(solutions(3))) == [{"prompt": [user], "chosen": chosen, "rejected": rejected}]


def test_a_prompt_is_what_two_conversations_share() -> None:
    user, yes, no = (
        {"role": role, "content": text} for role, text in (("user", "?"), ("assistant", "y"), ("assistant", "n"))
    )
    wanted = [{"prompt": [user], "chosen": [yes], "rejected": [no]}]
    assert list(explicit_prompt({"chosen": [user, yes], "rejected": [user, no], "score": 1})) == wanted
    assert list(explicit_prompt({"chosen": [user, yes], "rejected": [user, yes]})) == []
    assert list(explicit_prompt({"chosen": [yes, yes], "rejected": [user, no]})) == []


def test_an_instruction_says_the_form_of_the_answer() -> None:
    (row,) = gsm8k_instructed(question(3))
    assert (
        row["prompt"][0]["content"] == "What is 3+1?\n\nThink step by step, and end with a line of #### and the number."
    )
    assert row["solution"] == question(3)["answer"]


def test_rows_of_files_and_a_random_model(tmp_path: Path) -> None:
    done = prepare(tmp_path, section(tmp_path))
    assert done.returncode == 0, done.stderr
    counts = {name: len(lines(tmp_path / f"data/mine/{name}.jsonl")) for name in ("sft/train", "prompts/test")}
    assert counts == {"sft/train": 6, "prompts/test": 2}
    assert lines(tmp_path / "data/mine/prompts/test.jsonl")[0]["solution"] == question(2)["answer"]
    metrics = json.loads((tmp_path / "metrics/prepare.json").read_text())
    assert metrics["num_rows/preference/train"] == 6
    with safe_open(tmp_path / "models/base/model.safetensors", "np") as weights:
        assert metrics["num_parameters"] == sum(weights.get_tensor(name).size for name in weights.keys())  # noqa: SIM118
    first = (tmp_path / "models/base/model.safetensors").read_bytes()
    assert prepare(tmp_path, section(tmp_path)).returncode == 0
    assert (tmp_path / "models/base/model.safetensors").read_bytes() == first


def test_rows_and_model_of_the_hub_with_the_commits_that_were_read(hub: Hub, tmp_path: Path) -> None:  # noqa: F811
    def splits(name: str, part: str = "") -> dict[str, Any]:
        return {
            "train": [{"path": name, "split": "train"}],
            "validation": [{"path": name, "split": "train[:2]"}],
            "test": [{"path": name, "split": "test"}],
        }

    content = {
        "task": "own",
        "folder": "data/hub",
        "base_model": "Qwen/Qwen2-0.5B",
        "sft": splits("trl-lib/Capybara"),
        "preference": splits("trl-lib/ultrafeedback_binarized"),
        "prompts": splits("trl-lib/DeepMath-103K"),
    }
    environment = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "NO_PROXY": "127.0.0.1",
        "HF_HUB_OFFLINE": "0",
    }
    done = prepare(tmp_path, content, **environment)
    assert done.returncode == 0, done.stderr
    repositories = {name.partition("/")[2]: each for name, each in hub.repositories.items()}
    commits = {name: commit_hash(each.files() or {}) for name, each in repositories.items()}
    sources = json.loads((tmp_path / "data/hub/sources.json").read_text())
    assert sources["base_model"] == {"path": "Qwen/Qwen2-0.5B", "commit": commits["Qwen/Qwen2-0.5B"]}
    assert sources["sft"]["train"][0]["commit"] == commits["trl-lib/Capybara"]
    assert len(lines(tmp_path / "data/hub/sft/train.jsonl")) == 16
    files = {path.name for path in (tmp_path / "models/base").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
    assert not any(name.startswith(".") for name in files)

    done = prepare(tmp_path, content | {"base_revision": "none"}, **environment)
    assert done.returncode == 2
    assert "Qwen/Qwen2-0.5B (none): the repository has no such branch, tag or commit" in done.stderr


def test_a_base_model_of_a_folder_is_copied(tmp_path: Path) -> None:
    base = write_manual(tmp_path / "manual")["Qwen/Qwen2-0.5B"]
    done = prepare(tmp_path, section(tmp_path, base_model=str(base)))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "models/base/model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"task": "owm"}, "prepare.task is 'owm'; wanted embedded, or own"),
        ({"folderr": "x"}, "prepare.folderr: no such key; did you mean folder?"),
        ({"sft": {"train": [], "validation": [], "test": []}}, "prepare.sft.train is empty"),
        ({"sft": {"train": [{"path": "x.jsonl"}]}}, "prepare.sft.validation is missing"),
        ({"base_model": "./nowhere"}, "prepare.base_model: ./nowhere does not exist"),
        (
            {"prompts": {**{s: [{"path": "x.jsonl"}] for s in ("train", "validation", "test")}, "convert": "gsm8k"}},
            "gsm8k",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_written(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    done = prepare(tmp_path, section(tmp_path, **changed))
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "data").exists()


def test_a_row_that_a_conversion_cannot_read_is_named(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [question(1), {"question": "Without an answer?"}])
    entries = [{"path": str(tmp_path / "rows.jsonl")}]
    one = {"convert": "gsm8k_solution", "train": entries, "validation": entries, "test": entries}
    _, sets = read_own(section(tmp_path, sft=one), "params.yaml: prepare")
    wanted = r"rows.jsonl line 2: the conversion gsm8k_solution cannot read this row: it has no column 'answer'"
    with pytest.raises(UserError, match=wanted):
        write_sets(sets, "params.yaml: prepare", tmp_path / "data")


def test_a_commit_stands_for_itself_without_asking_the_hub() -> None:
    assert commit_of("nobody/nothing", "model", "a" * 40) == "a" * 40


def test_settings_of_a_set_have_a_plain_default() -> None:
    assert SetSettings(train=[], validation=[], test=[]).convert == "as_they_are"


# -- make use


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git checkout with a params.yaml and a recipe."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "params.yaml").write_text("prepare: {seed: 0}\ndpo: {beta: 0.5, max_steps: 3}\n")
    text = "# Another one.\n#\n#   make pipeline\n\nprepare: {seed: 0}\ndpo: {beta: 0.1, lr: 1}\n"
    (tmp_path / "recipes/other.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    for words in ("init -q", "config user.email a@b.c", "config user.name a", "add -A", "commit -qm start"):
        subprocess.run(["git", *words.split()], check=True)
    return tmp_path


def test_a_recipe_takes_the_place_and_says_what_changes(checkout: Path) -> None:
    said = list(recipes.use("other"))
    assert said[:3] == ["  dpo.beta: 0.5 → 0.1", "+ dpo.lr: 1", "- dpo.max_steps: 3"]
    assert said[3].endswith("Another one.\n\n  make pipeline")
    assert (checkout / "params.yaml").read_bytes() == (checkout / "recipes/other.yaml").read_bytes()


def test_nothing_that_git_does_not_know_is_lost(checkout: Path) -> None:
    (checkout / "params.yaml").write_text("prepare: {seed: 1}\ndpo: {beta: 0.7}\n")
    with pytest.raises(
        UserError, match=r"params.yaml has changes that are in no commit.*`git commit params.yaml` keeps"
    ):
        list(recipes.use("other"))
    assert "0.7" in (checkout / "params.yaml").read_text()


def test_an_unknown_recipe_suggests_one(checkout: Path) -> None:
    with pytest.raises(UserError, match=r"RECIPE=othr: no such recipe \(other\); did you mean other\?"):
        list(recipes.use("othr"))
    (checkout / "half.yaml").write_text("prepare: {seed: 0}\n")
    with pytest.raises(UserError, match=r"half.yaml: there is no section dpo; a recipe is a whole params.yaml"):
        list(recipes.use("half.yaml"))


def test_recipes_are_listed_with_their_first_line(checkout: Path) -> None:
    assert recipes.recipes() == {"other": "Another one."}
