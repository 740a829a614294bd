"""Processes that wait for one another for longer than a collective call would, get along with uneven work, and stop
together where the loss of one of them is not finite."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import free_ports
from safetensors.torch import load_file
from tiny import curve, run, run_policy, write_base, write_preference, write_prompts, write_sft

HERE = Path(__file__).resolve().parent
# Prompts of an odd length teach nothing, and are replaced: three completions among two processes.
REWARD = """
import os, time

def uneven(prompts, completion_ids, **columns):
    if os.environ.get("RANK") == "1" and "SECONDS" in os.environ:
        time.sleep(float(os.environ.pop("SECONDS")))
    flat = [len(prompt[0]["content"]) % 2 for prompt in prompts]
    return [0.0 if skip else sum(token % 3 == 0 for token in ids) for skip, ids in zip(flat, completion_ids)]
"""
STEPS = ["--max_steps", "2"]
UNEVEN = [
    *STEPS,
    *(
        "--num_generations",
        "3",
        "--dynamic_sampling",
        "--beta",
        "0.1",
        "--sync_ref_model",
        "--ref_model_sync_steps",
        "1",
    ),
    *("--eval_strategy", "steps", "--eval_steps", "2", "--test_split_size", "1", "--num_generations_eval", "1"),
]
FAULTY = [
    *("--train_sampling_strategy", "sequential", "--lr_scheduler_type", "constant", "--max_nonfinite_steps", "3"),
    *("--gradient_accumulation_steps", "2"),
]
FSDP = ["--fsdp", "full_shard auto_wrap", "--fsdp_config", '{"fsdp_version": 2}']


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds what all that is slow leaves: it runs at the same time, since it mostly sleeps."""
    folder = tmp_path_factory.mktemp("slow")
    base = write_base(folder / "base")
    ends = json.dumps({"eos_token_id": list(range(3, 90))})  # so that completions are of different lengths
    (base / "generation_config.json").write_text(ends, encoding="utf-8")
    pairs, prompts = write_preference(folder / "pairs.jsonl"), write_prompts(folder / "prompts.jsonl")
    (folder / "reward_uneven.py").write_text(REWARD, encoding="utf-8")
    uneven = ["--reward_funcs", f"{folder}/reward_uneven.py:uneven", *UNEVEN]
    commands: list[list[str]] = []
    batch = "--per_device_train_batch_size"
    run_policy("grpo", base, prompts, folder / "grpo", *uneven, *FSDP, batch, "3", starter=commands.append)
    run("dpo", base, pairs, folder / "dpo", *STEPS, "--precompute_ref_log_probs", starter=commands.append)
    words: list[str] = []
    two = [*FAULTY, "--max_steps", "6", "--per_device_train_batch_size", "1"]
    run("sft", base, write_sft(folder / "rows.jsonl"), folder / "faulty", *two, starter=words.extend)
    (folder / "faulty.json").write_text(json.dumps(words), encoding="utf-8")
    numbers = free_ports(len(commands) + 3)
    started = [[port, *words] for port, words in zip(numbers, commands, strict=False)]
    (folder / "commands.json").write_text(json.dumps(started), encoding="utf-8")
    (folder / "ports.json").write_text(json.dumps(numbers[-3:]), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "SECONDS"}
    done = subprocess.run(
        [sys.executable, str(HERE / "slow_processes.py"), str(folder)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-8000:]
    run_policy("grpo", base, prompts, folder / "alone", *uneven, batch, "6")
    run("sft", base, folder / "rows.jsonl", folder / "one-step", *FAULTY, "--max_steps", "1", batch, "2")
    return folder


def state(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "trainer_state.json").read_text(encoding="utf-8")))


def test_whoever_is_late_is_waited_for_and_named_and_leaves_nothing_in_the_store(folder: Path) -> None:
    found = [json.loads((folder / f"late-{rank}.json").read_text(encoding="utf-8")) for rank in range(3)]
    assert [one["sum"] for one in found] == [3, 3, 3]
    assert max(one["grown"] for one in found) <= 4
    assert found[0]["told"][0].startswith("Waiting for process 1 since 1 s (a nap)")
    assert not found[1]["told"]


def test_a_store_that_is_gone_ends_the_waiting(folder: Path) -> None:
    said = (folder / "gone.txt").read_text(encoding="utf-8")
    assert said.startswith("Connection closed by peer") and "a test" in said


def test_slow_rewards_uneven_groups_and_too_few_prompts_give_the_steps_of_one_process(folder: Path) -> None:
    alone, two = state(folder / "alone"), state(folder / "grpo")
    names = ("loss", "reward", "grad_norm", "kl", "dynamic_sampling/replaced", "completions/mean_length")
    expected, actual = curve(alone, *names), curve(two, *names)
    assert actual == [pytest.approx(line, rel=2e-4, abs=2e-5) for line in expected]
    assert any(line[4] for line in expected) and len(expected) == 2
    assert all(1 < line[5] < 8 for line in expected)
    [evaluated], [other] = curve(alone, "eval_loss", "eval_reward"), curve(two, "eval_loss", "eval_reward")
    assert other == pytest.approx(evaluated, rel=2e-4, abs=2e-5)


def test_rows_and_log_probs_that_one_process_prepares_are_waited_for(folder: Path) -> None:
    assert len(curve(state(folder / "dpo"), "loss")) == 2


def test_one_rank_s_loss_keeps_both_from_the_step(folder: Path) -> None:
    """Steps 2, 3 and 4: the model is that of step 1, and the rows named are those of the second process."""
    said = "".join((folder / f"faulty-{rank}.txt").read_text(encoding="utf-8") for rank in range(2))
    assert said.count("exit code 1") == 2, said[-5000:]
    # Of a step's 4 rows the second process has the second one of each pair; its last micro-batch is the one.
    told = re.findall(r"step (\d): the loss is not finite; rows: .* line ([\d, ]+)\. It is not applied", said)
    assert told == [("2", "8"), ("3", "12"), ("4", "16")]
    assert said.count("3 steps in a row were not finite") == 2  # each process ends with it
    point = folder / "faulty" / "checkpoint-4"
    assert [line.get("nonfinite_steps") for line in state(point)["log_history"]] == [None, 1, 2, 3]
    expected, actual, before = (
        load_file(one / "model.safetensors") for one in (folder / "one-step", point, folder / "base")
    )
    for name, weight in expected.items():
        torch.testing.assert_close(actual[name], weight, rtol=0, atol=2e-3, msg=name)
    moved = max((actual[name] - before[name]).abs().max() for name in actual)
    assert moved == pytest.approx(1e-2, rel=0.2), "one step of AdamW at this rate"
