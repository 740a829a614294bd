"""A tiny model with its tokenizer, and rows to train it on, written by the test that asks for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forks import know_code

from posttrain.cli import main
from posttrain.embedded.tokenizer import train_tokenizer, write_tokenizer
from posttrain.embedded.weights import write_model

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "vocab_size": 300,
}
NAMES = ["Ada", "Ben", "Cleo", "Dan"]


def sums(count: int) -> list[tuple[str, str, str]]:
    """Questions, right and wrong answers, of different lengths."""
    rows = []
    for i in range(count):
        name, a, b = NAMES[i % 4], i + 1, (7 * i) % 13
        question = f"{name} has {a} apples" + " and buys some" * (i % 3) + f" and {b} more. How many?"
        rows.append((question, f"{a} + {b} = {a + b}\n#### {a + b}", f"{a} + {b} = {a + b + 1}\n#### {a + b + 1}"))
    return rows


def write_base(folder: Path, seed: int = 1) -> Path:
    """A model folder."""
    folder.mkdir(parents=True)
    texts = [text for row in sums(40) for text in row]
    write_tokenizer(train_tokenizer(texts, SIZES["vocab_size"]), folder)
    write_model(SIZES, seed, folder)
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_sft(path: Path, count: int = 16) -> Path:
    """Rows of `messages`."""
    pairs = [(question, answer) for question, answer, _ in sums(count)]
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in pairs]
    return write_rows(path, [{"messages": messages} for messages in turns])


def write_preference(path: Path, count: int = 16) -> Path:
    """Rows of prompt, chosen and rejected, conversational."""

    def turn(role: str, content: str) -> list[dict[str, str]]:
        return [{"role": role, "content": content}]

    rows = [
        {"prompt": turn("user", q), "chosen": turn("assistant", c), "rejected": turn("assistant", r)}
        for q, c, r in sums(count)
    ]
    return write_rows(path, rows)


def write_prompts(path: Path, count: int = 16) -> Path:
    """Rows of prompt and solution, conversational."""
    rows = [
        {"prompt": [{"role": "user", "content": question}], "solution": answer.rpartition("#### ")[2]}
        for question, answer, _ in sums(count)
    ]
    return write_rows(path, rows)


# Differs from completion to completion, whatever an untrained model writes, and rises with what is easily learnt.
REWARD = """
def share_of_one(completion_ids, **columns):
    return [sum(token % 3 == 0 for token in ids) / len(ids) for ids in completion_ids]
"""


def run_policy(
    method: str, model: Path, data: Path, out: Path, *words: str, starter: Callable[[list[str]], Any] | None = None
) -> dict[str, Any]:
    """As `run`, with short completions and a reward that needs no other process."""
    reward = out.parent / "reward.py"
    out.parent.mkdir(parents=True, exist_ok=True)
    reward.write_text(REWARD, encoding="utf-8")
    defaults = {
        "reward_funcs": f"{reward}:share_of_one",
        "reward_workers": 0,
        "num_generations": 4,
        "max_completion_length": 8,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
    }
    given = {word.removeprefix("--") for word in words if word.startswith("--")}
    flags = [part for name, value in defaults.items() if name not in given for part in (f"--{name}", str(value))]
    return run(method, model, data, out, *flags, *words, starter=starter)


def run(
    method: str, model: Path, data: Path, out: Path, *words: str, starter: Callable[[list[str]], Any] | None = None
) -> dict[str, Any]:
    """Runs the command line with small settings; returns trainer_state.json. Later words win over the defaults here.
    With a starter, hands the command line to it and returns nothing."""
    defaults = {
        "model_name_or_path": model,
        "dataset_name": data,
        "output_dir": out,
        "cache_dir": out.parent / "cache",
        "max_steps": 3,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": "true",
    }
    given = {word.removeprefix("--") for word in words if word.startswith("--")}
    flags = [part for name, value in defaults.items() if name not in given for part in (f"--{name}", str(value))]
    if starter is not None:
        starter([method, *flags, *words])
        return {}
    know_code()
    assert main([method, *flags, *words]) == 0
    return dict(json.loads((out / "trainer_state.json").read_text()))


def curve(state: dict[str, Any], *names: str) -> list[list[float]]:
    """The logged values of some metrics, a list a step."""
    return [[line[name] for name in names] for line in state["log_history"] if names[0] in line]
