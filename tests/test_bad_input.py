"""A user's mistakes, from the command line: one clear message, exit code 2, and no weight is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import write_base, write_preference, write_rows, write_sft

from posttrain.cli import main


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    import posttrain.methods
    import posttrain.methods.reward

    def refuse(*args: object) -> None:
        raise AssertionError("weights are being loaded")

    monkeypatch.setattr(posttrain.methods, "load_causal_model", refuse)
    monkeypatch.setattr(posttrain.methods.reward, "load_reward_model", refuse)


def pair(chosen: str = "right", rejected: str = "wrong", prompt: str = "What is it? ") -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def text(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


QUESTIONS = [{"question": "q", "answer": "a"}]
LONG = [pair(prompt="long " * 80)]

Rows = Callable[[Path], Path]

# title → method, data, further flags, what the message says
MISTAKES: dict[str, tuple[str, Rows, list[str], list[str]]] = {
    "unknown flag": ("sft", write_sft, ["--learning_rat", "1"], ["--learning_rat", "learning_rate"]),
    "old flag": ("sft", write_sft, ["--max_seq_length", "5"], ["max_seq_length", "max_length"]),
    "wrong type": ("sft", write_sft, ["--max_steps", "many"], ["--max_steps", "many"]),
    "wrong choice": ("dpo", write_preference, ["--loss_type", "sigmoi"], ["sigmoid"]),
    "missing file": ("sft", lambda p: p, [], ["rows.jsonl"]),
    "empty file": ("sft", lambda p: text(p, ""), [], ["rows.jsonl", "empty"]),
    "not UTF-8": ("sft", lambda p: text(p, b'{"text": "caf\xe9"}\n'), [], ["rows.jsonl", "UTF-8"]),
    "broken JSON": ("sft", lambda p: text(p, '{"text": "a"}\n{"text": \n'), [], ["rows.jsonl", "line 2"]),
    "wrong columns, sft": ("sft", lambda p: write_rows(p, QUESTIONS), [], ["question", "messages"]),
    "wrong columns, dpo": ("dpo", write_sft, [], ["messages", "chosen", "rejected"]),
    "empty completion": ("dpo", lambda p: write_rows(p, [pair(), pair(rejected="")]), [], ["line 2", "empty"]),
    "chosen = rejected": ("dpo", lambda p: write_rows(p, [pair(), pair("same", "same")]), [], ["line 2", "chosen = "]),
    "no trained token": ("sft", write_sft, ["--max_length", "2", "--assistant_only_loss"], ["max_length"]),
    "prompt too long": ("dpo", lambda p: write_rows(p, LONG), ["--max_length", "16"], ["max_length"]),
    "eos = pad": ("sft", write_sft, ["--pad_token", "<|im_end|>"], ["pad_token", "eos"]),
    "unknown eos": ("sft", write_sft, ["--eos_token", "<|nothing|>"], ["<|nothing|>"]),
    "no evaluation data": ("sft", write_sft, ["--eval_strategy", "steps", "--eval_steps", "1"], ["test_split_size"]),
    "packing without a length": ("sft", write_sft, ["--packing", "--max_length", "none"], ["max_length"]),
    "wrong columns, reward": ("reward", write_sft, [], ["messages", "chosen", "rejected"]),
    "pair too long": ("reward", lambda p: write_rows(p, LONG), ["--max_length", "16"], ["max_length", "line 1"]),
    "router loss": ("reward", write_preference, ["--router_aux_loss_coef", "0.1"], ["router_aux_loss_coef"]),
    "exo_pair alone": ("dpo", write_preference, ["--loss_type", "exo_pair"], ["label_smoothing"]),
}  # fmt: skip


@pytest.mark.parametrize("title", MISTAKES)
def test_a_mistake_is_named(title: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    method, rows, flags, said = MISTAKES[title]
    data = rows(tmp_path / "rows.jsonl")
    words = ["--model_name_or_path", str(base), "--dataset_name", str(data), "--output_dir", str(tmp_path / "out")]
    assert main([method, *words, *flags]) == 2
    message = capsys.readouterr().err
    assert message.splitlines()[-1].startswith("posttrain: error: ") or "posttrain: error: " in message
    assert "Traceback" not in message
    for part in said:
        assert part in message, message
    assert not (tmp_path / "out" / "trainer_state.json").exists()


def test_missing_chat_template(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_base(tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    data = write_sft(tmp_path / "rows.jsonl")
    words = ["--model_name_or_path", str(model), "--dataset_name", str(data), "--output_dir", str(tmp_path / "o")]
    assert main(["sft", *words]) == 2
    assert "--chat_template_path" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json"])
def test_a_model_folder_with_something_missing(
    missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_base(tmp_path / "model")
    (model / missing).unlink()
    data = write_sft(tmp_path / "rows.jsonl")
    words = ["--model_name_or_path", str(model), "--dataset_name", str(data), "--output_dir", str(tmp_path / "o")]
    assert main(["sft", *words]) == 2
    assert str(model) in capsys.readouterr().err


def test_an_output_folder_that_cannot_be_made(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file stands where the folder would go (permissions would not stop root)."""
    data = write_sft(tmp_path / "rows.jsonl")
    (tmp_path / "taken").write_text("")
    out = str(tmp_path / "taken" / "out")
    assert main(["sft", "--model_name_or_path", str(base), "--dataset_name", str(data), "--output_dir", out]) == 2
    assert "output_dir" in capsys.readouterr().err


def test_a_typo_in_params(repository: Path, tmp_path: Path) -> None:
    """The stage's script names file, section and key, in a process of its own, before torch is imported."""
    params = tmp_path / "params.yaml"
    params.write_text("dpo:\n  bta: 0.1\n  model_name_or_path: m\n  dataset_name: d\n")
    command = [sys.executable, "-X", "importtime", str(repository / "scripts" / "dpo.py"), "--params", str(params)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ""}, check=False)
    assert done.returncode == 2
    assert "params.yaml: dpo.bta" in done.stderr and "beta" in done.stderr
    assert "| torch" not in done.stderr


def test_mistakes_of_all_rows_are_counted(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first offenders are shown, with how many there are."""
    rows = [pair() if i % 3 else pair("same", "same") for i in range(30)]
    data = text(tmp_path / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert (
        main(
            ["dpo", "--model_name_or_path", str(base), "--dataset_name", str(data), "--output_dir", str(tmp_path / "o")]
        )
        == 2
    )
    message = capsys.readouterr().err
    assert "line 1" in message and "10" in message
