"""Reward functions of the user: how they are found, what they get, and what they may return."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers_rewards import MINE, batch_of, column, config_of, message, rewards_of, write_functions

from posttrain.rollout.rewards.check import required_columns


def test_functions_get_what_they_declare() -> None:
    batch = batch_of([message("a"), message("bb")], [message("hi", "user")] * 2, tag=[3, 4])
    with rewards_of(f"{MINE}:everything", f"{MINE}:some") as rewards:
        assert rewards.names == ["everything", "some"]
        assert rewards.submit(batch).result().tolist() == [[3.0, 6.0], [4.0, 8.0]]


def test_sync_async_objects_and_no_opinion() -> None:
    batch = batch_of(["pass", "ab"])
    with rewards_of(
        *(f"{MINE}:{name}" for name in ("length", "some_opinions", "later", "scorer")), reward_workers=1
    ) as rewards:
        table = rewards.submit(batch).result()
        assert rewards.submit(batch_of([])).result().shape == (0, 4)
    np.testing.assert_array_equal(table, np.array([[4, np.nan, 2, 7], [2, 1, 1, 7]], dtype=np.float32))
    assert rewards.num_failures == 0


@pytest.mark.parametrize("workers", [0, None])
def test_a_function_in_a_module_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int | None
) -> None:
    (tmp_path / "my_package").mkdir()
    text = "def length(completions, **kwargs):\n    return [len(text) for text in completions]"
    write_functions(tmp_path / "my_package", text, f"scores_{workers}.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    with rewards_of(f"my_package.scores_{workers}.length", reward_workers=workers) as rewards:
        assert column(rewards.submit(batch_of(["a", "bb"])).result()) == [1.0, 2.0]


def test_equal_names_are_told_apart(tmp_path: Path) -> None:
    other = write_functions(tmp_path, "def length(completions): return [0 for _ in completions]", "other.py")
    with rewards_of(f"{MINE}:length", f"{other}:length") as rewards:
        assert rewards.names == ["length", "length_2"]
        assert rewards.submit(batch_of(["abc"])).result().tolist() == [[3.0, 0.0]]


@pytest.mark.parametrize("workers", [1, 2])
def test_scores_do_not_depend_on_the_overlap(workers: int | None) -> None:
    batches = [batch_of(["a"] * n) for n in (1, 2, 3)]
    names = [f"{MINE}:counting", f"{MINE}:later", f"{MINE}:length"]
    with rewards_of(*names, reward_workers=workers) as rewards:
        pending = [rewards.submit(batch) for batch in batches]
        together = [one.result() for one in reversed(pending)][::-1]
    with rewards_of(*names, reward_workers=workers) as rewards:
        alone = [rewards.submit(batch).result() for batch in batches]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one, other)
    assert [int(table[0, 0]) for table in together] == [1, 2, 3]  # its state saw the batches in their order


def test_scoring_goes_on_beside_other_work() -> None:
    with rewards_of(f"{MINE}:later") as rewards:
        rewards.submit(batch_of(["a"])).result()
        pending = rewards.submit(batch_of(["a"]))
        time.sleep(0.6)  # other work
        start = time.perf_counter()
        pending.result()
        assert time.perf_counter() - start < 0.1  # the function takes 0.2 s


def test_workers_start_light() -> None:
    heavy = {"torch", "transformers", "numpy", "jinja2", "posttrain.config"}
    program = f"import posttrain.rollout.rewards.worker, sys; assert not {heavy} & sys.modules.keys()"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


def test_workers_import_no_torch_by_themselves() -> None:
    with rewards_of(f"{MINE}:torch_is_here") as rewards:
        assert column(rewards.submit(batch_of(["a"])).result()) == [0.0]


def test_the_columns_that_functions_need_are_known_beforehand() -> None:
    config = config_of("accuracy_reward", "think_format_reward", f"{MINE}:some", f"{MINE}:everything")
    assert required_columns(config) == {"accuracy_reward": [("solution", "answer")], "some": [("tag",)]}
