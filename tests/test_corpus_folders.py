"""Broken model folders and tokenizers: a message that names what is broken, exit code 2, and nothing is written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from corpus import folders, folders_kinds, tokenizers
from helpers_corpus import bounded
from tiny import write_base, write_preference, write_prompts, write_sft

import posttrain.training  # noqa: F401 (its imports take longer than any case may)
from posttrain.cli import main
from posttrain.config import SFTConfig
from posttrain.data.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rows")
    pairs, prompts = write_preference(folder / "pairs.jsonl"), write_prompts(folder / "prompts.jsonl")
    return {"sft": write_sft(folder / "sft.jsonl"), "dpo": pairs, "reward": pairs, "grpo": prompts}


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    with bounded(60):
        yield


def refuse(*args: object) -> None:
    raise AssertionError("weights are being loaded")


CASES = {f"model: {title}": case for title, case in folders.CASES.items()}
CASES |= {f"kind: {title}": case for title, case in folders_kinds.CASES.items()}
CASES |= {f"tokenizer: {title}": case for title, case in tokenizers.CASES.items()}


@pytest.mark.parametrize("title", CASES)
def test_broken_folders(
    title: str,
    base: Path,
    rows: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = CASES[title]
    model = tmp_path / "model"
    shutil.copytree(base, model)
    case.change(model)
    if not case.loads:
        monkeypatch.setattr("posttrain.methods.load_causal_model", refuse)
        monkeypatch.setattr("posttrain.methods.reward.load_reward_model", refuse)
    words = [case.method, "--model_name_or_path", str(model), "--dataset_name", str(rows[case.method])]
    words += ["--output_dir", str(tmp_path / "out"), "--cache_dir", str(base.parent / "cache")]
    words += [word.replace("{model}", str(model)) for word in case.flags]
    assert main(words) == 2
    message = capsys.readouterr().err
    assert "posttrain: error: " in message and "Traceback" not in message
    for part in case.said:
        assert part in message, message
    written = {path.name for path in (tmp_path / "out").rglob("*")} if (tmp_path / "out").exists() else set()
    assert written <= {".lock", "run.json"}
    assert not list(tmp_path.rglob("was-read"))  # what a pickle here does to whoever reads it


@pytest.mark.parametrize("title", tokenizers.FINE)
def test_odd_tokenizers(title: str, base: Path, tmp_path: Path) -> None:
    """Nothing is cut off, padded or left out for what stands in the settings."""
    shutil.copytree(base, tmp_path / "model")
    tokenizers.FINE[title](tmp_path / "model")
    encoded = [
        load_tokenizer(SFTConfig(model_name_or_path=str(folder)))([tokenizers.TEXT, "a"])["input_ids"]
        for folder in (base, tmp_path / "model")
    ]
    assert encoded[0] == encoded[1] and len(encoded[0][0]) > 3
