"""`posttrain verify`: what it says of a model that is whole, of one that is damaged, and of another tree than then."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import run, write_base, write_sft

from posttrain.cli import main
from posttrain.experiment import file_checks, verify
from posttrain.experiment.file_checks import DIFFERS, OK, Check

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base, rows.jsonl and models/sft, its provenance beside it."""
    folder = tmp_path_factory.mktemp("trained")
    base, rows = write_base(folder / "base"), write_sft(folder / "rows.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = ("--provenance_file", "models/sft.provenance.json", "--max_steps", "1")
        run("sft", base.relative_to(folder), rows.relative_to(folder), Path("models/sft"), *words)
    return folder


@pytest.fixture
def copy(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to spoil, which is the working directory, and in which the tree was clean."""
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    monkeypatch.chdir(folder)
    change(folder, lambda about: about["code"].update(git=None))
    return folder


def change(folder: Path, how: Callable[[dict[str, Any]], object]) -> None:
    file = folder / "models/sft.provenance.json"
    about = json.loads(file.read_text())
    how(about)
    file.write_text(json.dumps(about))


def verified(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    """Exit code, and as JSON what was said; lines by part."""
    code = main(["verify", "models/sft", "--format", "json"])
    said = json.loads(capsys.readouterr().out)
    return code, {"verdict": said["verdict"]} | {one["part"]: (one["verdict"], one["text"]) for one in said["checks"]}


def test_whole_and_as_it_was(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = verified(capsys)
    assert code == 0 and said["verdict"] == "The model is whole, and all that it was made from is as it was."
    parts = ("model", "chat template", "base model", "training rows", "code", "packages", "machine")
    assert {said[part][0] for part in parts} == {"✓"} and said["git"][0] == "?"
    assert main(["verify", "models/sft"]) == 0
    text = capsys.readouterr().out
    assert "✓ base model     6 files" in text and text.endswith(f"\n\n{said['verdict']}\n")


def append(name: str) -> Change:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + b" ")


def flip(name: str) -> Change:
    """Of the same size."""

    def spoil(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    return spoil


WHOLE = "The model is whole, "
CASES: dict[str, tuple[Change, int, str, str, str]] = {
    "a bit of the weights": (flip("models/sft/model.safetensors"), 1, "model", "changed: model.safetensors", "damaged"),
    "a file is gone": (
        lambda d: (d / "models/sft/config.json").unlink(),
        1,
        "model",
        "missing: config.json",
        "damaged",
    ),
    "other template": (append("models/sft/chat_template.jinja"), 1, "chat template", "not as it was", "damaged"),
    "other rows": (append("rows.jsonl"), 1, "training rows", "changed: rows.jsonl", "could not be made again here"),
    "other base": (flip("base/model.safetensors"), 1, "base model", "changed: model.safetensors", "could not be made"),
    # What is not here cannot be looked at, which is no difference.
    "rows are gone": (
        lambda d: ((d / "rows.jsonl").unlink(), change(d, lambda about: about["directory"].update(path="/none"))),
        *(0, "training rows", "not here: rows.jsonl", "1 part could not be looked at"),
    ),
    "card": (append("models/sft/README.md"), 0, "model", "7 files", "all that it was made from is as it was."),
    "package": (
        lambda d: change(d, lambda about: about["packages"].update(torch="1.0", gone="2.0")),
        *(0, "packages", "gone 2.0 → not installed", "today's tree would make another one"),
    ),
    "code": (
        lambda d: change(d, lambda about: about["code"]["files"].update({"losses/sft.py": "0"})),
        *(0, "code", "src/posttrain/losses/sft.py", "today's tree would make another one"),
    ),
    "another machine": (
        lambda d: change(d, lambda about: about["hardware"].update(cpu="Abacus", gpus=[{"name": "H100"}])),
        *(0, "machine", "trained on 1 × H100", "is as it was."),
    ),
    "streamed": (
        lambda d: change(d, lambda about: about["data"]["train"]["files"]["rows.jsonl"].update(sha256=None)),
        *(0, "training rows", "rows were streamed", "1 part could not be looked at."),
    ),
    "of the hub": (
        lambda d: change(d, lambda about: about["data"]["train"].update(files={}, hub={"org/rows": "c" * 40})),
        *(0, "training rows", "org/rows of the hub at commit cccccccccccc", "1 part could not be looked at."),
    ),
    "a dirty tree": (
        lambda d: change(
            d,
            lambda about: about["code"].update(
                git={"commit": "f" * 40, "dirty": True, "changed": ["src/a.py"], "untracked": []}
            ),
        ),
        *(0, "git", "commit ffffffffffff is not in a checkout here", "is as it was."),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_not_as_it_was(name: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, code, part, text, verdict = CASES[name]
    spoil(copy)
    found, said = verified(capsys)
    assert found == code
    assert text in said[part][1] and verdict in said["verdict"]
    assert ("damaged" in verdict) is not said["verdict"].startswith(WHOLE)


def test_a_section_of_params_that_has_changed(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = json.loads((copy / "models/sft.provenance.json").read_text())["params"]["set"]
    section = about | {"learning_rate": 0.5, "beta": None}
    section.pop("beta")
    Path("params.yaml").write_text(json.dumps({"small": {"unrelated": 1}, "sft": section}))  # JSON is YAML
    code, said = verified(capsys)
    assert code == 0 and said["params"] == ("✗", "sft.learning_rate 0.01 → 0.5")
    Path("params.yaml").write_text(json.dumps({"sft": about}))
    assert verified(capsys)[1]["params"] == ("✓", "section sft as it was")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["models/none"], "models/none: no such folder"),
        (["base"], "base: nothing tells where it comes from"),
        ([], "the following arguments are required: MODEL"),
        (["models/sft", "--fromat", "json"], "did you mean --format?"),
    ],
)
def test_mistakes(words: list[str], message: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 1}', '{"format": 99}'])
def test_a_provenance_that_cannot_be_read(content: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "models/sft.provenance.json").write_text(content)
    assert main(["verify", "models/sft"]) == 2
    wanted = "a later posttrain has written it" if "99" in content else "is no provenance that can be read"
    assert wanted in capsys.readouterr().err


def test_large_files_are_hashed_with_a_bar(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_checks, "_BAR_FROM", 1)
    about = verify.read(Path("models/sft"))
    assert next(verify.verify(Path("models/sft"), about)).verdict == file_checks.OK


def test_a_commit_that_changes_nothing_that_trains_is_told_as_such() -> None:
    whole = [Check("model", OK, "7 files", "model"), Check("code", OK, "as they were", "today")]
    git = Check("git", DIFFERS, "src/posttrain/experiment/status.py", "today")
    assert "what changed since trains no model" in verify.verdict([*whole, git])
    packages = Check("packages", DIFFERS, "torch 1 → 2", "today")
    assert "today's tree would make another one" in verify.verdict([*whole, git, packages])
