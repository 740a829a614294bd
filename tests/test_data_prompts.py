"""Rows of prompts: what is tokenised, what reaches the rewards, and what happens to long ones."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import write_base, write_rows

from posttrain.cli import main
from posttrain.config import parse_command_line
from posttrain.data.prepare import PreparedData, prepare
from posttrain.data.tokenizer import load_tokenizer
from posttrain.errors import UserError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "model")


def config_words(model: Path, data: Path, *words: str) -> list[str]:
    needed = ["--model_name_or_path", str(model), "--dataset_name", str(data), "--reward_funcs", "think_format_reward"]
    return [*needed, "--cache_dir", str(data.parent / "cache"), *words]


def prepared(model: Path, rows: list[dict[str, Any]], folder: Path, *words: str) -> tuple[PreparedData, Any]:
    data = write_rows(folder / "rows.jsonl", rows)
    config, _ = parse_command_line("grpo", config_words(model, data, *words))
    tokenizer = load_tokenizer(config)
    result = prepare(config, tokenizer, "prompts", "train")
    assert result is not None
    return result, tokenizer


def test_text_and_conversations_and_what_stands_beside_them(model: Path, tmp_path: Path) -> None:
    user = {"role": "user", "content": "Ada has 3 apples."}
    rows = [
        {"prompt": "Ada has", "solution": "3", "tags": ["a", 1]},
        {"prompt": [user], "solution": None},
        {"prompt": [user, {"role": "assistant", "content": "She has"}], "other": {"b": 2}},
    ]
    data, tokenizer = prepared(model, rows, tmp_path)
    texts = [tokenizer.decode(ids) for ids in data.dataset["prompt_ids"]]
    asked = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    assert texts == ["Ada has", asked, asked + "She has"]
    assert [json.loads(text) for text in data.dataset["prompt"]] == [row["prompt"] for row in rows]
    assert [json.loads(text) for text in data.dataset["columns"]] == [
        {"solution": "3", "tags": ["a", 1]},
        {"solution": None},
        {"other": {"b": 2}},
    ]
    assert data.dataset["row"][:] == [0, 1, 2] and data.dataset["place"][1].endswith("rows.jsonl line 2")
    assert data.counts == {
        "rows_read": 3, "rows": 3, "tokens": sum(map(len, data.dataset["prompt_ids"])), "rows_truncated": 0,
        "tokens_truncated": 0, "rows_dropped_long_prompt": 0,
    }  # fmt: skip


def test_long_prompts_are_dropped_or_cut_at_the_front_or_an_error(model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "abc"}, {"prompt": "abcdefghijkl"}]
    limit = ["--max_prompt_tokens", "5"]
    data, tokenizer = prepared(model, rows, tmp_path, *limit, "--long_prompts", "drop")
    assert [tokenizer.decode(ids) for ids in data.dataset["prompt_ids"]] == ["abc"]
    assert data.counts["rows_dropped_long_prompt"] == 1
    data, tokenizer = prepared(model, rows, tmp_path, *limit, "--long_prompts", "truncate_left")
    whole = tokenizer("abcdefghijkl")["input_ids"]
    assert data.dataset["prompt_ids"][1] == whole[-5:]
    assert (data.counts["rows_truncated"], data.counts["tokens_truncated"]) == (1, len(whole) - 5)
    with pytest.raises(UserError, match=r"prompt too long \(.*rows.jsonl line 2\).*--long_prompts drop"):
        prepared(model, rows, tmp_path, *limit)
    with pytest.raises(UserError, match="--max_prompt_tokens 2"):
        prepared(model, rows, tmp_path, "--max_prompt_tokens", "2", "--long_prompts", "drop")


@pytest.mark.parametrize(
    ("rows", "words", "text"),
    [
        ([{"messages": [{"role": "user", "content": "a"}]}], [], "wrong columns for reinforcement learning"),
        ([{"prompt": ""}], [], "empty prompt"),
        ([{"prompt": 3}], [], "wrong type in 'prompt'"),
        ([{"prompt": "a"}], ["--reward_funcs", "accuracy_reward"], "needs the column solution or answer"),
        ([{"prompt": "a"}], ["--reward_funcs", "accuracy_rewrd"], "did you mean accuracy_reward?"),
        ([{"prompt": "a"}], ["--max_completion_length", "9999"], "1,024 that .* at most"),
        ([{"prompt": "a"}], ["--per_device_train_batch_size", "6"], "no multiple of num_generations 8"),
        ([{"prompt": "a"}], ["--long_prompts", "drop"], "give max_prompt_tokens"),
        ([{"prompt": "a"}], ["--temperature", "0"], "temperature is 0"),
        ([{"prompt": "a"}], ["--use_vllm"], "runs vLLM in this process, and it is not installed here"),
        ([{"prompt": "a"}], ["--loss_type", "sapo", "--sapo_temperature_neg", "0"], "sapo_temperature_neg is 0"),
        ([{"prompt": "a"}], ["--num_generations", "1"], "num_generations"),
    ],
)
def test_mistakes_end_before_weights_are_loaded(
    rows: list[dict[str, Any]],
    words: list[str],
    text: str,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import re

    data = write_rows(tmp_path / "rows.jsonl", rows)
    assert main(["grpo", *config_words(model, data, "--output_dir", str(tmp_path / "out"), *words)]) == 2
    error = capsys.readouterr().err
    assert re.search(text, error), error
    assert "Loading weights" not in error
    assert not (tmp_path / "out").exists()
