"""The card beside a model: what the hub reads, what a person reads, and code that runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from tiny import run, run_policy, write_base, write_preference, write_prompts, write_sft
from transformers import AutoTokenizer

from posttrain.citations import CITATIONS
from posttrain.config import METHODS, from_mapping
from posttrain.model_card import base_on_hub, loading_code, shown_path, write_card
from posttrain.models import peft_warnings
from posttrain.reward_model import load_sequence_classifier

LINES = {"sft": write_sft, "dpo": write_preference, "reward": write_preference}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "model")


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    """Metadata and text, as the hub's own library reads them."""
    card = ModelCard.load(folder / "README.md")
    return card.data.to_dict(), card.text


def run_code(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What the card's code prints, run in the model's folder."""
    code = re.search(r"```python\n(.*?)\n```", text, re.DOTALL)
    assert code is not None
    monkeypatch.chdir(folder)
    capsys.readouterr()
    with peft_warnings():
        exec(compile(code[1], "README.md", "exec"), {})
    return capsys.readouterr().out


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "LoRA"])
@pytest.mark.parametrize("method", ["sft", "reward", "dpo", "rloo"])
def test_every_finished_folder_has_a_card_whose_code_runs(
    method: str,
    adapter: bool,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--max_steps", "2", *(["--use_peft", "--lora_r", "4"] if adapter else [])]
    out = tmp_path / "out"
    if method == "rloo":
        run_policy(method, base, write_prompts(tmp_path / "rows.jsonl"), out, *words)
    else:
        evaluation = ["--eval_strategy", "steps", "--eval_steps", "2", "--test_split_size", "0.25"]
        run(method, base, LINES[method](tmp_path / "rows.jsonl"), out, *words, *evaluation)
    metadata, text = card_of(out)
    assert metadata == {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-classification" if method == "reward" else "text-generation",
        "tags": ["posttrain", method, *(["lora"] if adapter else [])],
    }
    assert "`model` (local)" in text and "`rows.jsonl` (local) (" in text and "in 2 steps" in text
    assert str(tmp_path) not in text and str(base.parent) not in text
    assert ("lora_r: 4" in text) == adapter and "max_steps: 2" in text
    assert re.search(r"\| loss \| -?\d", text) and (" evaluation |" in text) == (method != "rloo")
    assert not re.search(r"runtime|per_second|step_time|memory", text)
    assert CITATIONS[method] in text
    printed = run_code(out, text, monkeypatch, capsys)
    if method == "reward":
        assert float(printed) == pytest.approx(score(out), rel=1e-5, abs=1e-7)


def score(folder: Path) -> float:
    """What the reward model gives the card's example, loaded in this project's own way."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), load_sequence_classifier(str(folder))
    chat = [{"role": "user", "content": "What is 2 + 3?"}, {"role": "assistant", "content": "5"}]
    ids = tokenizer.apply_chat_template(chat, return_dict=True, return_tensors="pt")["input_ids"]
    return float(model(input_ids=ids).logits[0, 0].item())


def test_somebody_s_own_readme_stays(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("# My project\n")
    for _ in range(2):
        run("sft", base, write_sft(tmp_path / "rows.jsonl"), out, "--max_steps", "1", "--use_peft")
        assert (out / "README.md").read_text() == "# My project\n"
    assert "is not a card of posttrain, and stays as it is" in caplog.text
    (out / "README.md").unlink()
    for steps in ("1", "2"):
        words = ["--max_steps", steps, "--use_peft", "--resume_from_checkpoint", "false"]
        run("sft", base, write_sft(tmp_path / "rows.jsonl"), out, *words)
        assert f"in {steps} step" in (out / "README.md").read_text()


def config(method: str, **flags: Any) -> Any:
    rewards = {"reward_funcs": ["accuracy_reward"]} if method in ("grpo", "rloo") else {}
    common = {"model_name_or_path": "Qwen/Qwen2-0.5B", "dataset_name": "trl-lib/Capybara"}
    given = common | rewards | flags
    return from_mapping(method, {name: value for name, value in given.items() if value is not None}, "test")


@pytest.mark.parametrize("method", METHODS)
def test_what_the_hub_reads(method: str, tmp_path: Path) -> None:
    write_card(tmp_path, config(method, use_peft=True), [], 7, {"rows": 1234, "tokens": 5}, "alice/trained")
    metadata, text = card_of(tmp_path)
    assert metadata["base_model"] == "Qwen/Qwen2-0.5B" and metadata["base_model_relation"] == "adapter"
    assert metadata["datasets"] == ["trl-lib/Capybara"]
    assert "license" not in metadata  # nobody has said which
    assert "# trained\n" in text and 'path = "alice/trained"' in text and "(1,234 rows, 5 tokens) in 7 steps" in text
    assert "[Qwen/Qwen2-0.5B](https://huggingface.co/Qwen/Qwen2-0.5B)" in text
    assert "[trl-lib/Capybara](https://huggingface.co/datasets/trl-lib/Capybara)" in text


def test_a_chain_of_local_models_ends_at_the_hub_s(tmp_path: Path) -> None:
    """SFT of a hub's model, then DPO of that folder: both name the same base."""
    (tmp_path / "sft").mkdir()
    write_card(tmp_path / "sft", config("sft"), [], 1, {})
    assert base_on_hub(str(tmp_path / "sft")) == "Qwen/Qwen2-0.5B"
    write_card(tmp_path, config("dpo", model_name_or_path=str(tmp_path / "sft")), [], 1, {})
    metadata, text = card_of(tmp_path)
    assert metadata["base_model"] == "Qwen/Qwen2-0.5B" and "`sft` (local)" in text


def test_a_mixture_of_files_and_the_hub_s(tmp_path: Path) -> None:
    mixture = [
        {"path": "trl-lib/Capybara"},
        {"path": "json", "data_files": ["a.jsonl", "/data/b.jsonl"]},
        {"path": "parquet", "data_files": {"train": "c.parquet"}},
        {"path": "./d"},
    ]
    write_card(tmp_path, config("sft", dataset_name=None, datasets=mixture), [], 1, {})
    metadata, text = card_of(tmp_path)
    assert metadata["datasets"] == ["trl-lib/Capybara"]
    assert "and `a.jsonl` (local) and `b.jsonl` (local) and `c.parquet` (local) and `d` (local) in 1 step." in text


@pytest.mark.parametrize("content", ["no metadata", "---\nbase_model: [a, b]\n---\n", "---\n: [\n---\n"])
def test_a_base_s_card_may_be_anything(content: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(content)
    assert base_on_hub(str(tmp_path)) is None


def test_settings_are_shown_without_what_tells_of_the_machine(tmp_path: Path) -> None:
    given = {
        "reward_funcs": ["/home/ada/rewards.py:length", "rewards/own.py:style", "judge:some/model"],
        "judge_base_url": "http://10.0.0.7:8000/v1",
        "chat_template_path": "/home/ada/chat.jinja",
        "beta": 0.1,
        "output_dir": "/home/ada/out",
        "learning_rate": 1e-6,
        "hub_token": "hf_secret",
    }
    write_card(tmp_path, config("grpo", **given), [], 1, {})
    text = (tmp_path / "README.md").read_text()
    assert "rewards.py:length" in text and "rewards/own.py:style" in text and "beta: 0.1" in text
    assert "chat_template_path: chat.jinja" in text
    assert not re.search(r"/home|ada|10\.0\.0\.7|hf_secret|output_dir|learning_rate", text)


def test_the_last_value_of_each_metric_counts(tmp_path: Path) -> None:
    """Not every line has every metric."""
    history = [
        {"loss": 3.0, "reward": 0.25, "rewards/length/mean": 4.0, "step": 1},
        {"eval_loss": 5.0, "eval_reward": 0.123456, "eval_runtime": 9.0, "step": 1},
        {"loss": 2.0, "step": 2},
        {"train_loss": 77.0, "step": 2},
    ]
    write_card(tmp_path, config("grpo"), history, 2, {})
    rows = [line for line in (tmp_path / "README.md").read_text().splitlines() if line.startswith("| ")]
    assert rows == [
        "| last value of | training | evaluation |",
        "| loss | 2 | 5 |",
        "| reward | 0.25 | 0.1235 |",
        "| rewards/length/mean | 4 |  |",
    ]


def test_paths_that_are_shown() -> None:
    shown = {"data/rows.jsonl": "data/rows.jsonl", "/tmp/x/rows.jsonl": "rows.jsonl", "../rows": "rows", "~/a/b": "b"}
    assert {path: shown_path(path) for path in shown} == shown


def test_code_without_a_chat_template() -> None:
    for method in ("sft", "reward"):
        code = loading_code(config(method), has_template=False, repository=None)
        compile(code, "README.md", "exec")
        assert "apply_chat_template" not in code
