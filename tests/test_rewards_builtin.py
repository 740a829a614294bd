"""The built-in rewards, and mathematics that is graded."""

import threading
from typing import Any

import pytest
from helpers_rewards import batch_of, column, message, rewards_of

from posttrain.grading import is_same_mathematics
from posttrain.rollout.rewards.functions import (
    accuracy_reward,
    get_soft_overlong_punishment,
    reasoning_accuracy_reward,
    think_format_reward,
)

GSM8K = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nAltogether 48+24 = <<48+24=72>>72.\n#### 72"


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        (r"so \boxed{72}", GSM8K),
        ("48 + 24 = 72\n#### 72", GSM8K),
        ("#### 1,234", "1234"),
        ("#### $5.50", "5.5"),
        ("#### 0.1", "1/10"),
        ("#### -3", "#### -3.0"),
        ("#### 3", "1 + 2\n#### \\frac{6}{2}"),
        ("The answer is $4$.", "4"),
        (r"\boxed{x^2+2x+1}", "$(x+1)^2$"),
        (r"\boxed{\{1,2\}}", r"$\{2,1\}$"),
        (r"\boxed{5 \text{ cm}}", "5"),
        (r"\boxed{0.3333333333}", "$1/3$"),
        ("#### Step 1\nso \\boxed{4}", "4"),  # a heading of Markdown
        ("#### Step 1\nThe answer is $4$", "4"),
        (r"\boxed{4}", "#### Part 1\nand so on: the answer is $4$"),
    ],
)
def test_right_answers(text: str, reference: str) -> None:
    assert is_same_mathematics(text, reference) is True


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("", "72"),
        ("72", "72"),  # a number somewhere in the text is no answer
        ("#### 71", GSM8K),
        (r"\boxed{71} #### 72", GSM8K),  # the box counts for more
        (r"\boxed{}", "4"),
        (r"\boxed{1/0}", "4"),
        ("#### 4 or 5", "4"),
    ],
)
def test_wrong_answers_and_none(text: str, reference: str) -> None:
    assert is_same_mathematics(text, reference) is False


@pytest.mark.parametrize("reference", ["", "seventy-two"])
def test_a_reference_that_cannot_be_read(reference: str) -> None:
    assert is_same_mathematics(r"\boxed{72}", reference) is None


def test_mathematics_that_takes_for_ever_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.grading.MATH_TIMEOUT", 1)
    assert is_same_mathematics(r"\boxed{9^{9^{9^9}}}", "4") is False


def test_grading_outside_of_the_main_thread(caplog: pytest.LogCaptureFixture) -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(is_same_mathematics(r"\boxed{\frac{1}{2}}", "0.5")))
    thread.start()
    thread.join()
    assert found == [True]
    assert not caplog.records


def test_accuracy_reads_solution_and_then_answer() -> None:
    completions = ["#### 1", "#### 1", "#### 1", "#### 1", "#### 1"]
    solution = ["1", "2", None, None, "one"]
    answer = [None, "1", 1, None, "1"]
    assert accuracy_reward(completions, solution=solution, answer=answer) == [1.0, 0.0, 1.0, None, None]
    assert accuracy_reward(completions, answer=answer) == [None, 1.0, 1.0, None, 1.0]
    assert accuracy_reward([message("#### 1")], solution=["1"]) == [1.0]


def test_accuracy_of_the_answer_behind_the_reasoning() -> None:
    right = "<think>or 5?</think> \\boxed{4}"
    early = "<think>\\boxed{4}</think> I do not know"
    endless = "<think>\\boxed{4}"
    solution = ["4", "4", "4", "four", "four"]
    texts = [right, early, endless, right, endless]
    assert reasoning_accuracy_reward(texts, solution=solution) == [1.0, 0.0, 0.0, None, 0.0]
    again = "<think>a</think> \\boxed{3} </think> \\boxed{4}"  # the last end counts
    assert reasoning_accuracy_reward([again], solution=["4"]) == [1.0]
    other = "[r]5[/r] \\boxed{4}"
    assert reasoning_accuracy_reward([other], solution=["4"], reasoning_delimiters=["</think>", "[/r]"]) == [1.0]


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("<think>a\nb</think>c", 1.0),
        ("<think></think>", 1.0),
        ("<think>a</think>b</think>", 1.0),
        ("<think>a", 0.0),
        (" <think>a</think>", 0.0),
        ("a<think>b</think>", 0.0),
        ("<think>a<think>b</think>", 0.0),
        ("</think><think>", 0.0),
        ("", 0.0),
    ],
)
def test_format_of_thinking(text: str, reward: float) -> None:
    assert think_format_reward([text, message(text)]) == [reward, reward]


def test_soft_overlong_punishment_by_hand() -> None:
    # L_max = 100, L_cache = 20: nothing up to 80 tokens, then (80 - length) / 20, from 100 on -1.
    punish = get_soft_overlong_punishment(100, 20)
    lengths = [0, 80, 81, 90, 99, 100, 150]
    assert punish([[1] * length for length in lengths]) == [0.0, 0.0, -0.05, -0.5, -0.95, -1.0, -1.0]


def test_flags_of_the_overlong_punishment() -> None:
    batch = batch_of(["x" * length for length in (40, 45, 50)])
    with rewards_of("get_soft_overlong_punishment", max_completion_length=50) as rewards:
        assert rewards.names == ["soft_overlong_punishment_reward"]  # the metric's name in TRL
        assert column(rewards.submit(batch).result()) == [0.0, -0.5, -1.0]  # a fifth of 50 is 10
    with rewards_of("get_soft_overlong_punishment", max_completion_length=50, soft_punish_cache=5) as rewards:
        assert column(rewards.submit(batch).result()) == [0.0, 0.0, -1.0]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_built_in_rewards_are_the_same_in_any_number_of_processes(workers: int) -> None:
    completions = [f"<think>?</think> \\boxed{{{i}}}" for i in range(7)]
    solution: list[Any] = ["0", "1", "5", 3, None, "five", "#### 6"]
    with rewards_of("accuracy_reward", "think_format_reward", reward_workers=workers) as rewards:
        table = rewards.submit(batch_of(completions, solution=solution)).result()
    assert table.shape == (7, 2)
    assert table.dtype == "float32"
    assert column(table) == [1.0, 1.0, 0.0, 1.0, None, None, 1.0]
    assert column(table, 1) == [1.0] * 7
    assert rewards.num_failures == 0
