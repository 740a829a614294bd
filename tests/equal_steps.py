"""What two runs whose steps are cut differently have in common, step by step."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.step_record import read_steps


@dataclass(frozen=True)
class Step:
    """What all processes saw in an optimizer step.

    Args:
        rows: where they stand in the data.
        sequences: digests of the tokens of documents, completions or sides of pairs, prompts included, and how many of
            each there were.
    """

    rows: frozenset[str]
    sequences: Counter[int]


def steps_seen(file: Path) -> list[Step]:
    """The steps of a run, from the first.

    Args:
        file: of `--record_steps`; those of further processes lie beside it.
    """
    files = [file, *file.parent.glob(f"{file.stem}.*{file.suffix}")]
    of_processes = [read_steps(one)[1:] for one in files]  # without the model as training begins
    return [
        Step(
            frozenset(row for line in lines for row in line["rows"]),
            Counter(digest for line in lines for digest in line["sequences"]),
        )
        for lines in zip(*of_processes, strict=True)
    ]


def logged(folder: Path) -> list[dict[str, Any]]:
    """All that was measured in training and evaluation, a line a time.

    Args:
        folder: of the finished model.
    """
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [line for line in history if "loss" in line or "eval_loss" in line]
