"""Readers of data, templates, flags and YAML take anything: a message for the user, or sense. benchmarks/fuzz.py goes
on for as long as one likes."""

from __future__ import annotations

import warnings

import pytest

EXAMPLES = {"text files": 150, "rows": 100, "templates": 40, "flags": 100, "YAML": 150}


@pytest.mark.parametrize("name", EXAMPLES)
def test_only_messages_for_the_user(name: str) -> None:
    # Takes a second, which every process that collects tests would spend.
    from fuzzing import TARGETS
    from hypothesis import HealthCheck, given, settings

    assert TARGETS.keys() == EXAMPLES.keys()
    strategy, target = TARGETS[name]

    @settings(
        max_examples=EXAMPLES[name],
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def holds(value: object) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of SyntaxWarning in what a template compiles to, and the like
            target(value)

    holds()
