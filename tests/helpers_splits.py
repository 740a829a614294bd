"""Flags → the numbers of the rows that they select."""

from pathlib import Path
from typing import Any

from helpers_data import write_jsonl

from posttrain.config import SFTConfig
from posttrain.data.sources import Source
from posttrain.data.splits import Role, open_source


def config(**flags: Any) -> SFTConfig:
    return SFTConfig(model_name_or_path="model", explicit=frozenset(flags), **flags)


def numbers(source: Source | None) -> list[int]:
    assert source is not None
    return [row.columns["n"] for row in source.rows()]


def opened(role: Role = "train", **flags: Any) -> list[int]:
    return numbers(open_source(config(**flags), role))


def rows(start: int, stop: int) -> list[dict[str, int]]:
    return [{"n": number} for number in range(start, stop)]


def write_folder(folder: Path) -> Path:
    """Six rows to train on, and two to validate on."""
    write_jsonl(folder / "train.jsonl", rows(0, 6))
    write_jsonl(folder / "validation.jsonl", rows(6, 8))
    return folder
