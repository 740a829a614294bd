"""Completions for people to read: all of a step in a parquet file, and a few of them on the screen."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from posttrain.rollout.rewards.batch import text_of
from posttrain.terminal import visible

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from posttrain.rollout.collect import Rollout

SHOWN = 4
_WIDTH = 400  # characters of a prompt or completion on the screen


def completions_table(
    step: int,
    rollouts: Sequence[Rollout],
    advantages: np.ndarray,
    names: Sequence[str],
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
) -> pa.Table:
    """A row a completion: step, row (of the data set), prompt, completion, num_tokens, ended, a column a reward, under
    its name, and advantage.

    Args:
        step: the optimizer step that is first to train on them.
        rollouts: C completions.
        advantages: (C,).
        names: of the rewards.
        rows: the prompts' data set.
        tokenizer: of the policy.
    """
    columns: dict[str, Any] = {
        "step": [step] * len(rollouts),
        "row": [rollout.row for rollout in rollouts],
        "prompt": [text_of(json.loads(rows[rollout.row]["prompt"])) for rollout in rollouts],
        "completion": tokenizer.batch_decode([one.token_ids for one in rollouts], skip_special_tokens=True),
        "num_tokens": [len(rollout.token_ids) for rollout in rollouts],
        "ended": [rollout.ended for rollout in rollouts],
    }
    for index, name in enumerate(names):
        values = [float(rollout.rewards[index]) for rollout in rollouts]
        columns[name] = pa.array(values, pa.float32(), from_pandas=True)  # NaN, no opinion: null
    return pa.table(columns | {"advantage": pa.array(advantages, pa.float32())})


def write_completions(table: pa.Table, earlier: pa.Table | None, folder: Path) -> pa.Table:
    """Writes `completions_<step>.parquet`, whole or not at all.

    Args:
        table: of a generation.
        earlier: what was written last; of the same step where several generations make one up.
        folder: to write into.

    Returns:
        What was written.
    """
    if earlier is not None and earlier["step"][0] == table["step"][0]:
        table = pa.concat_tables([earlier, table])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"completions_{table['step'][0].as_py():05d}.parquet"
    beside = path.with_suffix(".part")
    pq.write_table(table, beside)
    os.replace(beside, path)
    return table


def show_completions(table: pa.Table, names: Sequence[str], number: int, one_a_prompt: bool) -> None:
    """Shows some completions above the progress bar.

    Args:
        table: from `completions_table`.
        names: of the rewards.
        number: how many.
        one_a_prompt: no two of the same prompt.
    """
    rows = table.to_pylist()
    if one_a_prompt:
        rows = list({row["row"]: row for row in reversed(rows)}.values())[::-1]
    lines = []
    for row in rows[:number]:
        scores = ", ".join(f"{name} {'none' if row[name] is None else format(row[name], 'g')}" for name in names)
        told = f"{scores}, advantage {row['advantage']:.3f}, {row['num_tokens']} tokens"
        lines += [
            f"step {row['step']}, row {row['row']}: {told}",
            *_indented("prompt    ", row["prompt"]),
            *_indented("completion", row["completion"]),
        ]
    if lines:
        tqdm.write("\n".join(lines), file=sys.stderr)


def _indented(title: str, text: str) -> list[str]:
    cut = text if len(text) <= _WIDTH else "… " + text[-_WIDTH:]
    first, *rest = visible(cut, kept="\n\t").split("\n")
    return [f"  {title} | {first}", *(f"  {' ' * len(title)} | {line}" for line in rest)]
