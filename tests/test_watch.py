"""What is told of losses that leap and of gradients that are gone, by hand; and how often."""

from __future__ import annotations

import random

import pytest

from posttrain.watch import FEWEST, NO_REASON, NO_TARGETS, NO_VARIANCE, QUIET_STEPS, WINDOW, Watch, deviation_of


def test_the_deviation_is_that_of_most_losses() -> None:
    """Distances from the median 3 are 2, 1, 0, 1, 997; their median is 1."""
    assert deviation_of([1.0, 2.0, 3.0, 4.0, 1000.0], 3.0) == pytest.approx(1.4826)
    assert deviation_of([2.0] * 30, 2.0) == pytest.approx(0.12)  # 0.02 + 2 / 20


def test_a_leap_is_told_once_and_a_noisy_loss_is_not() -> None:
    draws, watch = random.Random(1), Watch()
    assert not any(watch.spike(step, draws.gauss(2.0, 0.3)) for step in range(1, 201))
    assert len(watch.losses) == WINDOW
    assert watch.spike(201, 4.0) is None  # 6.7 deviations
    assert str(watch.spike(202, 9.0)).startswith("step 202: the loss is 9; of the 50 steps before, the median is 2")
    assert watch.spike(203, 9.0) is None and watch.spike(201 + QUIET_STEPS, 9.0) is None
    assert watch.spike(202 + QUIET_STEPS, 9.0) is not None


def test_nothing_is_told_before_there_is_something_to_compare_with() -> None:
    watch = Watch()
    assert all(watch.spike(step, 100.0 * step) is None for step in range(FEWEST))
    assert watch.spike(FEWEST, 1e9) is not None


def test_a_falling_loss_and_a_level_that_has_changed_are_no_leaps() -> None:
    watch = Watch()
    assert not any(watch.spike(step, 5.0 - step / 100) for step in range(300))
    told = [step for step in range(300, 1000) if watch.spike(step, 8.0)]
    assert told == [300]


@pytest.mark.parametrize(
    ("num_targets", "has_signal", "reason"), [(0, True, NO_TARGETS), (9, False, NO_VARIANCE), (9, True, NO_REASON)]
)
def test_a_dead_gradient_is_told_with_its_reason(num_targets: int, has_signal: bool, reason: str) -> None:
    watch = Watch()
    told = {step: watch.dead(step, float(step == 5), num_targets, has_signal) for step in range(1, 130)}
    assert [step for step, text in told.items() if text] == [15, 15 + QUIET_STEPS]
    assert told[15] == f"step 15: the gradient has been exactly 0 for 10 steps in a row. In this one: {reason}"


def test_it_goes_on_from_its_state() -> None:
    draws = [random.Random(2).gauss(2.0, 0.3) for _ in range(40)] + [50.0, 50.0]
    whole, first = Watch(), Watch()
    expected = [(whole.spike(i, loss), whole.dead(i, 0.0, 1, True)) for i, loss in enumerate(draws)]
    found = [(first.spike(i, loss), first.dead(i, 0.0, 1, True)) for i, loss in enumerate(draws[:20])]
    second = Watch(**first.state_dict())
    found += [(second.spike(i, loss), second.dead(i, 0.0, 1, True)) for i, loss in enumerate(draws[20:], 20)]
    assert found == expected and any(spike for spike, _ in expected) and any(dead for _, dead in expected)
