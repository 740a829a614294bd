"""What is said about a model that does not load: which flag named it, and what to do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import write_base, write_preference, write_sft
from transformers import AutoModelForCausalLM

from posttrain.cli import main
from posttrain.config import DPOConfig
from posttrain.models import load_causal_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "model")


def truncated(folder: Path) -> Path:
    """A model whose download ended early."""
    weights = write_base(folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return folder


@pytest.mark.parametrize("method", ["sft", "reward"])
def test_weights_that_are_not_whole(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, write = truncated(tmp_path / "model"), write_sft if method == "sft" else write_preference
    words = ["--model_name_or_path", str(model), "--dataset_name", str(write(tmp_path / "rows.jsonl"))]
    assert main([method, *words, "--output_dir", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert f"--model_name_or_path {model}: a file of its weights is not whole" in message
    assert "copy or download it again" in message and "Traceback" not in message


def test_a_reference_is_named_by_its_own_flag(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference, data = truncated(tmp_path / "reference"), write_preference(tmp_path / "rows.jsonl")
    words = ["--model_name_or_path", str(base), "--ref_model_name_or_path", str(reference), "--dataset_name", str(data)]
    assert main(["dpo", *words, "--output_dir", str(tmp_path / "out"), "--max_steps", "1"]) == 2
    message = capsys.readouterr().err
    assert f"--ref_model_name_or_path {reference}: a file of its weights" in message
    assert "--model_name_or_path" not in message


def test_a_reference_has_a_revision_of_its_own(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def from_pretrained(path: str, revision: str, **options: Any) -> Any:
        asked.append(revision)
        return torch.nn.Linear(1, 1), {"missing_keys": [], "unexpected_keys": []}

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    config = DPOConfig(model_name_or_path=str(base), model_revision="v2")
    load_causal_model(config, str(base))
    load_causal_model(config, str(base), "--ref_model_name_or_path", revision="main")
    assert asked == ["v2", "main"]
