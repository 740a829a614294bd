"""Runs of `posttrain inspect` in this process, and its report taken apart again."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers_data import make_tokenizer
from safetensors.numpy import save_file
from tiny import SIZES

from posttrain.cli import main
from posttrain.embedded.weights import write_model

USER_AND_BOT = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "It is 4."}]


def write_model_folder(folder: Path, **tokenizer: Any) -> Path:
    """A model whose tokens are the characters of ASCII text, and a template as helpers_data makes it."""
    made = make_tokenizer(**tokenizer)
    folder.mkdir(parents=True)
    write_model(SIZES | {"vocab_size": len(made)}, 1, folder)
    made.save_pretrained(folder)
    return folder


def write_large_model(folder: Path, **sizes: int) -> Path:
    """A folder that passes for a large model: its config says so, and inspect reads no weights."""
    made = make_tokenizer()
    folder.mkdir(parents=True)
    write_model(SIZES | {"vocab_size": len(made)}, 1, folder)
    config = (folder / "config.json").read_text(encoding="utf-8")
    for name, size in sizes.items():
        config = re.sub(rf'"{name}": \d+', f'"{name}": {size}', config)
    (folder / "config.json").write_text(config, encoding="utf-8")
    save_file({"nothing": np.zeros(1, dtype=np.float32)}, folder / "model.safetensors")
    made.save_pretrained(folder)
    return folder


class Report(NamedTuple):
    """What was printed.

    Args:
        code: the exit code.
        text: all of stdout.
        sections: its parts by their first word; lines without the title.
        error: stderr.
    """

    code: int
    text: str
    sections: dict[str, list[str]]
    error: str


def inspect(capsys: pytest.CaptureFixture[str], *words: object) -> Report:
    """Run the command and split what it prints at its empty lines."""
    code = main(["inspect", *map(str, words)])
    captured = capsys.readouterr()
    parts = [part.splitlines() for part in captured.out.split("\n\n") if part.strip()]
    return Report(code, captured.out, {part[0].split()[0]: part[1:] for part in parts}, captured.err)


def example_of(report: Report) -> dict[str, tuple[str, str]]:
    """The segments of the example: label → (its text, what of it is marked)."""
    segments: dict[str, str] = {}
    label = ""
    for line in report.sections["Example"]:
        label = line[:12].strip() or label
        text = line[12:]
        segments[label] = segments.get(label, "") + (text.replace("⏎", "\n") if "⏎" in text else text)
    return {
        label: (text.replace("[[", "").replace("]]", ""), "".join(re.findall(r"\[\[(.*?)\]\]", text, flags=re.DOTALL)))
        for label, text in segments.items()
    }


def commands_of(report: Report) -> list[str]:
    """The commands of a report, each on one line."""
    text = re.sub(r"\\\n\s*", "", "\n".join(report.sections["Start"]))
    return [line.strip() for line in text.splitlines() if line.startswith("  posttrain ")]
