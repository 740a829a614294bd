"""Reward functions that fail: what it costs, who is told, and what is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers_rewards import MINE, batch_of, column, rewards_of

from posttrain.errors import UserError


@pytest.mark.parametrize("workers", [0, None])
def test_an_exception_names_function_row_and_line(workers: int | None, caplog: pytest.LogCaptureFixture) -> None:
    with rewards_of(f"{MINE}:divide", reward_workers=workers) as rewards:
        table = rewards.submit(batch_of(["a", "b", "c"], tag=[2, 0, 4])).result()
    assert column(table) == [0.5, None, 0.25]  # the others keep their rewards
    assert rewards.num_failures == 1
    assert "divide at data.jsonl:2: ZeroDivisionError: division by zero" in caplog.text
    assert "reward_functions.py:" in caplog.text


def test_a_call_that_hangs_is_ended(caplog: pytest.LogCaptureFixture) -> None:
    with rewards_of(f"{MINE}:hang", reward_timeout=0.5) as rewards:
        table = rewards.submit(batch_of(["a", "hang", "b"])).result()
        assert column(rewards.submit(batch_of(["a"])).result()) == [1.0]  # a new worker took over
    assert column(table) == [1.0, None, 1.0]
    assert "hang at data.jsonl:2: it took longer than 0.5 s" in caplog.text


def test_a_process_that_ends_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    with rewards_of(f"{MINE}:stop") as rewards:
        assert column(rewards.submit(batch_of(["a", "stop", "b"])).result()) == [1.0, None, 1.0]
    assert "stop at data.jsonl:2: its process ended with exit code 3" in caplog.text


def test_when_everything_hangs_the_rest_is_not_tried(caplog: pytest.LogCaptureFixture) -> None:
    with rewards_of(f"{MINE}:hang", reward_timeout=0.3, max_reward_failures=4) as rewards:
        assert column(rewards.submit(batch_of(["hang"] * 9)).result()) == [None] * 9
    assert rewards.num_failures == 4
    assert "hang at 6 completions (data.jsonl:4; data.jsonl:5; data.jsonl:6 and 3 more): not tried" in caplog.text


def test_what_fails_only_with_all_rows_together(caplog: pytest.LogCaptureFixture) -> None:
    with rewards_of(f"{MINE}:together") as rewards:
        assert column(rewards.submit(batch_of(["a", "b"])).result()) == [1.0, 1.0]
    assert rewards.num_failures == 1
    assert "RuntimeError: too many" in caplog.text
    assert "with all rows together" in caplog.text


def test_values_that_are_no_rewards(caplog: pytest.LogCaptureFixture) -> None:
    with rewards_of(f"{MINE}:odd") as rewards:
        assert column(rewards.submit(batch_of(["a"] * 7)).result()) == [None] * 6 + [-2.0]
    assert rewards.num_failures == 5
    for row, shown in enumerate(["nan", "inf", "1e+39"], start=1):
        assert f"odd at data.jsonl:{row}: it gave {shown}, which is no usable number" in caplog.text
    for row, shown in enumerate(["'1.0'", "[1]"], start=4):
        assert f"odd at data.jsonl:{row}: it returned {shown}; return a number, or None" in caplog.text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("one_too_few", "returned 1 rewards for 2 completions"),
        ("no_list", "returned float, not a list"),
        ("divide", "needs 'tag', and the data has no such column (it has colour)"),
    ],
)
def test_a_function_that_is_wrong_whatever_the_rows(name: str, message: str) -> None:
    with rewards_of(f"{MINE}:{name}") as rewards, pytest.raises(UserError) as error:
        rewards.submit(batch_of(["a", "b"], colour=["red", "blue"])).result()
    assert message in str(error.value)
    assert f"{MINE}:{name}" in str(error.value)


def test_too_many_failures_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    with rewards_of(f"{MINE}:divide", max_reward_failures=3) as rewards:
        rewards.submit(batch_of(["a", "b", "c"], tag=[0, 0, 0])).result()
        with pytest.raises(UserError) as error:
            rewards.submit(batch_of(["d"], tag=["x"])).result()
    text = str(error.value)
    assert "failed 4 times, more than --max_reward_failures 3 (counted are calls" in text
    assert text.splitlines()[-1].endswith("or bear more with --max_reward_failures.")
    assert text.count("ZeroDivisionError") == caplog.text.count("ZeroDivisionError") == 1  # said once, of three rows
    assert "divide at 3 completions (data.jsonl:1; data.jsonl:2; data.jsonl:3): ZeroDivisionError" in text
    assert "divide at data.jsonl:1: TypeError" in text


def test_failures_of_one_prompt_name_its_row_once(caplog: pytest.LogCaptureFixture) -> None:
    with rewards_of(f"{MINE}:divide", max_reward_failures=3) as rewards:
        batch = batch_of(["a", "b", "c"], tag=[0, 0, 0])
        batch.places[:] = ["data.jsonl line 153", "data.jsonl line 153", "data.jsonl line 27"]
        rewards.submit(batch).result()
    assert "divide at 3 completions (data.jsonl line 153, 27): ZeroDivisionError" in caplog.text


def test_rows_without_any_opinion_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with rewards_of(f"{MINE}:some_opinions") as rewards:
        for _ in range(2):
            rewards.submit(batch_of(["a", "pass"])).result()
    assert caplog.text.count("no reward has an opinion on 1 of 2 completions (the first at data.jsonl:2)") == 1


def test_what_a_function_has_started_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / "pids"
    with rewards_of(f"{MINE}:child", reward_timeout=1.0) as rewards:
        rewards.submit(batch_of([str(path)])).result()
    _wait_for_end([int(pid) for pid in path.read_text().split()])


def test_workers_end_with_a_process_that_is_killed(tmp_path: Path, repository: Path) -> None:
    path = tmp_path / "pids"
    program = f"""
import sys
sys.path.insert(0, {str(repository / "tests")!r})
from helpers_rewards import batch_of, rewards_of
with rewards_of({MINE + ":child"!r}) as rewards:
    rewards.submit(batch_of([{str(path)!r}])).result()
"""
    process = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.monotonic() + 30
    while not (path.exists() and len(path.read_text().split()) == 2) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _wait_for_end([int(pid) for pid in path.read_text().split()])


def _wait_for_end(pids: list[int]) -> None:
    deadline = time.monotonic() + 10
    while pids and time.monotonic() < deadline:
        pids = [pid for pid in pids if _is_running(pid)]
        time.sleep(0.02)
    assert not pids


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # Nobody may be there to fetch the exit code of an orphan: it is a zombie then.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
