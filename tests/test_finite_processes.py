"""A loss that is not finite in one of two processes: neither applies the step, and both stop together."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from forks import free_ports
from safetensors.torch import load_file
from tiny import run, write_base, write_sft

HERE = Path(__file__).resolve().parent


def two_processes(steps: str, rank: int, words: list[str]) -> subprocess.CompletedProcess[str]:
    (port,) = free_ports(1)
    command = [sys.executable, str(HERE / "faulty_processes.py"), steps, str(rank), str(port), *words]
    return subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=90
    )


def test_one_rank_s_loss_keeps_both_from_the_step(tmp_path: Path) -> None:
    """Steps 2, 3 and 4: the model is that of step 1, and the rows named are those of the second process."""
    base, data = write_base(tmp_path / "model"), write_sft(tmp_path / "rows.jsonl", 16)
    words: list[list[str]] = []
    sizes = ["--train_sampling_strategy", "sequential", "--lr_scheduler_type", "constant", "--max_nonfinite_steps", "3"]
    sizes += ["--gradient_accumulation_steps", "2"]
    run("sft", base, data, tmp_path / "one", "--max_steps", "1", "--per_device_train_batch_size", "2", *sizes)
    two = ["--max_steps", "6", "--per_device_train_batch_size", "1", *sizes]
    run("sft", base, data, tmp_path / "two", *two, starter=words.append)
    done = two_processes("2,3,4", 1, words[0])
    assert done.returncode == 1, done.stderr[-5000:]
    # Of a step's 4 rows the second process has the second one of each pair; its last micro-batch is the one.
    told = re.findall(r"step (\d): the loss is not finite; rows: .* line ([\d, ]+)\. It is not applied", done.stderr)
    assert told == [("2", "8"), ("3", "12"), ("4", "16")]
    assert done.stderr.count("3 steps in a row were not finite") == 2  # each process ends with it
    point = tmp_path / "two" / "checkpoint-4"
    state = json.loads((point / "trainer_state.json").read_text())
    assert [line.get("nonfinite_steps") for line in state["log_history"]] == [None, 1, 2, 3]
    expected, actual = (load_file(folder / "model.safetensors") for folder in (tmp_path / "one", point))
    for name, weight in expected.items():
        torch.testing.assert_close(actual[name], weight, rtol=0, atol=2e-3, msg=name)
    before = load_file(base / "model.safetensors")
    moved = max((actual[name] - before[name]).abs().max() for name in actual)
    assert moved == pytest.approx(1e-2, rel=0.2), "one step of AdamW at this rate"
