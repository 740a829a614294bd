"""Broken command lines and config files: each ends with a message that names what is wrong, and exit code 2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from corpus import config_files, flags
from helpers_corpus import bounded
from tiny import write_base, write_preference, write_prompts, write_sft

import posttrain.training  # noqa: F401 (its imports take longer than any case may)
from posttrain.cli import main
from posttrain.config import parse_command_line
from posttrain.errors import report_mistakes
from posttrain.experiment.params import stage_config
from posttrain.launch import launcher_command


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rows")
    pairs, prompts = write_preference(folder / "pairs.jsonl"), write_prompts(folder / "prompts.jsonl")
    return {"sft": write_sft(folder / "sft.jsonl"), "dpo": pairs, "reward": pairs, "grpo": prompts, "rloo": prompts}


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("weights are being loaded")

    monkeypatch.setattr("posttrain.methods.load_causal_model", refuse)
    monkeypatch.setattr("posttrain.methods.reward.load_reward_model", refuse)


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    with bounded(60):
        yield


@pytest.mark.parametrize("title", flags.CASES)
def test_flags(
    title: str, base: Path, rows: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method, given, said = flags.CASES[title]
    (tmp_path / "file").write_text("a line\n")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere/at/all")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    places = {
        "{tmp}": str(tmp_path),
        "{model}": str(base),
        "{file}": str(tmp_path / "file"),
        "{data}": str(rows[method]),
    }
    words = []
    for word in given:
        for name, place in places.items():
            word = word.replace(name, place)
        words.append(word)
    needed = [
        "--model_name_or_path",
        str(base),
        "--dataset_name",
        str(rows[method]),
        "--output_dir",
        str(tmp_path / "out"),
    ]
    before = files(tmp_path, base)
    assert main([method, *needed, *words]) == 2
    check(capsys.readouterr().err, said)
    assert files(tmp_path, base) == before


@pytest.mark.parametrize("title", config_files.CASES)
def test_files(title: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind, content, said = config_files.CASES[title]
    file = tmp_path / "settings.yaml"
    file.write_bytes(content)
    needed = ["--model_name_or_path", "m", "--dataset_name", "d"]

    def run() -> int:
        if kind == "params":
            stage_config("sft", ["--params", str(file)])
        elif kind == "accelerate":
            _, launch = parse_command_line("sft", [*needed, "--accelerate_config", str(file)])
            launcher_command(launch, [])
        else:
            parse_command_line("sft", [*needed, "--config", str(file)])
        return 0

    assert report_mistakes(run) == 2
    check(capsys.readouterr().err, ["settings.yaml", *said])


def files(*folders: Path) -> list[Path]:
    """What stands in folders, but for the lock of a run that has begun and found the mistake then."""
    return sorted(path for folder in folders for path in folder.rglob("*") if path.name not in ("out", ".lock"))


def check(message: str, said: list[str]) -> None:
    """One message, of a bounded size, that says so."""
    assert "posttrain: error: " in message and "Traceback" not in message
    assert len(message) < 2000
    for part in said:
        assert part in message, message
