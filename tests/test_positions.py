"""Rows that are longer than what the model has positions for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import run, run_policy, write_base, write_preference, write_prompts, write_sft
from transformers import GPT2Config, GPT2LMHeadModel

from posttrain.config import SFTConfig
from posttrain.positions import positions_of

GPT2 = {"n_positions": 32, "vocab_size": 300, "n_embd": 32, "n_layer": 1, "n_head": 2}


def with_positions(folder: Path, **config: object) -> Path:
    """A model of a few positions."""
    write_base(folder)
    GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **config)).save_pretrained(folder)
    return folder


WORDS = [("sft", []), ("sft", ["--packing"]), ("dpo", []), ("reward", []), ("sft", ["--dataset_streaming"])]


@pytest.mark.parametrize(("method", "words"), WORDS)
def test_more_than_a_table_holds(
    method: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = with_positions(tmp_path / "model", **GPT2)
    data = (write_sft if method == "sft" else write_preference)(tmp_path / "rows.jsonl")
    with pytest.raises(AssertionError):
        run(method, model, data, tmp_path / "out", "--max_length", "64", *words)
    said = capsys.readouterr().err
    assert "give --max_length 32" in said
    assert ("the longest row has" in said) == (words != ["--dataset_streaming"])


def test_an_adapter_has_the_positions_of_its_base(tmp_path: Path) -> None:
    model, adapter = with_positions(tmp_path / "model", **GPT2), tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(model)}))
    assert positions_of(SFTConfig(model_name_or_path=str(adapter))) == (32, False)


def test_more_than_a_model_with_rotary_positions_has_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_base(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 32}))
    data = write_sft(tmp_path / "rows.jsonl")
    run("sft", model, data, tmp_path / "a", "--max_steps", "1", "--max_length", "64")
    assert "32 positions: what stands behind them is badly read; --max_length 32" in capsys.readouterr().err
    # Documents of 32 tokens at most, in rows of more.
    run("sft", model, data, tmp_path / "b", "--max_steps", "1", "--max_length", "32", "--packing")
    assert "positions" not in capsys.readouterr().err


def test_completions_alone_are_too_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = with_positions(tmp_path / "model", **GPT2 | {"n_positions": 256})
    data = write_prompts(tmp_path / "rows.jsonl")
    with pytest.raises(AssertionError):
        run_policy("grpo", model, data, tmp_path / "out", "--max_completion_length", "256")
    said = capsys.readouterr().err
    assert "give --max_completion_length" in said and "at most" in said
    assert "max_prompt_tokens" not in said
