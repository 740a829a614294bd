"""Reward functions that misbehave: a counted failure, or a message that says what is wrong; nothing hangs, nothing is
lost, and the next batch is scored as if nothing had been."""

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from corpus.rewards import FILES, FUNCTIONS
from helpers_rewards import batch_of, column, config_of

from posttrain.errors import UserError
from posttrain.rollout.rewards import pool
from posttrain.rollout.rewards.attempts import Here
from posttrain.rollout.rewards.calls import FunctionName
from posttrain.rollout.rewards.check import check_rewards
from posttrain.rollout.rewards.pool import Lane
from posttrain.rollout.rewards.table import FunctionReward, Rewards

HARMLESS = "def score(completions): return [len(one) for one in completions]"


@pytest.fixture(scope="module")
def lanes() -> Iterator[dict[bool, Lane]]:
    """One process for all functions, and one with little patience for those that are slow on purpose."""
    both = {False: Lane(30.0), True: Lane(0.6)}
    yield both
    for lane in both.values():
        lane.close()


def check(title: str, folder: Path, lane: Lane | Here, caplog: pytest.LogCaptureFixture) -> None:
    case = FUNCTIONS[title]
    (folder / "case.py").write_text(case.code, encoding="utf-8")
    (folder / "next.py").write_text(HARMLESS, encoding="utf-8")

    def rewards_in(name: str) -> Rewards:
        return Rewards([FunctionReward("score", FunctionName(f"{folder / name}:score"), [lane], False)], 10)

    rewards = rewards_in("case.py")
    batch = batch_of(["a", "bad", "c"], tag=[1, 2, 3])
    if case.mistake:
        with pytest.raises(UserError) as error:
            rewards.submit(batch).result()
        assert case.mistake in str(error.value)
    else:
        assert column(rewards.submit(batch).result()) == case.values
        assert rewards.num_failures == case.failures
        assert case.says in caplog.text
    assert len(caplog.text) < 5000
    assert batch == batch_of(["a", "bad", "c"], tag=[1, 2, 3])
    assert column(rewards_in("next.py").submit(batch_of(["ab", "a"])).result()) == [2.0, 1.0]


@pytest.mark.parametrize("title", FUNCTIONS)
def test_in_a_process_of_its_own(
    title: str,
    lanes: dict[bool, Lane],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    check(title, tmp_path, lanes[FUNCTIONS[title].is_slow], caplog)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("title", [title for title, case in FUNCTIONS.items() if not case.in_worker])
def test_in_the_process_that_trains(
    title: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, handler = os.getcwd(), signal.getsignal(signal.SIGTERM)
    here = Here(30.0)
    try:
        check(title, tmp_path, here, caplog)
    finally:
        here.close()
    assert (os.getcwd(), signal.getsignal(signal.SIGTERM)) == (folder, handler)


def test_a_function_that_hangs_in_the_process_that_trains_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "slow.py").write_text("import time\ndef score(completions): return [time.sleep(0.3)]", encoding="utf-8")
    name = FunctionName(f"{tmp_path / 'slow.py'}:score")
    here = Here(0.1)
    Rewards([FunctionReward("score", name, [here], False)], 10).submit(batch_of(["a"])).result()
    here.close()
    assert f"reward function {name.text} has been running for 0.1 s" in caplog.text


@pytest.mark.parametrize("workers", [0, None])
@pytest.mark.parametrize("title", FILES)
def test_files_that_cannot_be_used(
    title: str,
    workers: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    content, says = FILES[title]
    if workers == 0 and ("process" in says or "longer" in says):
        return  # these would end the tests
    monkeypatch.setattr(pool, "LOAD_SECONDS", 0.5 if "hangs" in title else 30.0)
    path = tmp_path / f"mine_{workers}.py"
    path.write_bytes(content)
    caplog.set_level(logging.WARNING)
    with pytest.raises(UserError) as error:
        check_rewards(config_of(f"{path}:score", reward_workers=workers), ["prompt", "answer"])
    assert says in str(error.value)
    assert "Traceback" not in capfd.readouterr().err
