"""What of its rewards a run is known by."""

import sys
from pathlib import Path

import pytest
from helpers_rewards import config_of, write_functions

from posttrain.rollout.rewards import check
from posttrain.rollout.rewards.check import reward_files


def digests(config: object) -> list[str]:
    return [file["sha256"] for file in reward_files(config).values()]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "checkpoint-1").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md", "checkpoint-1/model.safetensors"):
        (folder / name).write_text(name, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("model.safetensors", True),
        ("tokenizer.json", True),
        ("chat_template.jinja", True),
        ("README.md", False),
        ("run.json", False),
        ("manifest.json", False),
        ("provenance.json", False),
        (".lock", False),
        ("checkpoint-1/model.safetensors", False),
    ],
)
def test_a_reward_model_is_what_scores(model: Path, name: str, counts: bool) -> None:
    config = config_of(reward_model_name_or_path=str(model))
    before = digests(config)
    (model / name).write_text("other", encoding="utf-8")
    assert (digests(config) != before) is counts


def test_each_file_is_read_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []
    monkeypatch.setattr(check, "sha256_of", lambda files: seen.extend(files) or [""] * len(files))
    mine = write_functions(tmp_path, "")
    names = [f"{mine}:one", f"{mine}:two", "accuracy_reward", "judge:wise", f"text-classification:{model}"]
    rubric = tmp_path / "rubric.txt"
    rubric.write_text("{{ completion }}", encoding="utf-8")
    digests(config_of(*names, reward_model_name_or_path="some/model", judge_rubric=str(rubric)))
    of_model = [model / name for name in ("config.json", "model.safetensors", "tokenizer.json")]
    assert seen == [Path(mine), *of_model, rubric]


@pytest.mark.parametrize("module", ["alone", "packed", "packed.inner", "packed.bare.deep"])
def test_a_module_is_its_source_and_not_run(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it stands in the current folder, in a package, or in a folder of a package that is none itself."""
    (tmp_path / "packed/bare").mkdir(parents=True)
    files = {"alone": "alone.py", "packed": "packed/__init__.py", "packed.inner": "packed/inner.py"}
    for name in (*files.values(), "packed/bare/deep.py"):
        (tmp_path / name).write_text(f"raise SystemExit('{name} was run')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    config = config_of(f"{module}.score")
    (before,) = digests(config)
    (tmp_path / files.get(module, "packed/bare/deep.py")).write_text("def score(): ...", encoding="utf-8")
    (after,) = digests(config)
    assert before != after
    assert not {"alone", "packed"} & sys.modules.keys()


def test_a_module_without_a_source_has_no_hash() -> None:
    assert digests(config_of("itertools.count", "no_such_package.inner.score", "json.no_such.score")) == []
