"""Memory that a step gives back is there for the next one."""

import subprocess
import sys

import pytest

# Pieces of a "step", freed in the order of a backward pass: four of 24 MiB, larger than what glibc keeps by itself.
STEPS = """
import resource, sys
from posttrain.heap import keep_what_is_freed
assert keep_what_is_freed() == bool(int(sys.argv[1]))
import torch
def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pieces = [torch.zeros(6 * 2**20) for _ in range(4)]
    while pieces:
        pieces.pop()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(5):
    step()
print(step())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
@pytest.mark.parametrize("variable", [None, "MALLOC_MMAP_THRESHOLD_"])
def test_pages_of_a_step_are_those_of_the_last_one(variable: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless somebody has said what glibc should do."""
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    if variable is not None:
        monkeypatch.setenv(variable, str(2**22))
    command = [sys.executable, "-c", STEPS, str(int(variable is None))]
    faults = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert faults < 100 if variable is None else faults > 4 * 24 * 2**20 / 4096 * 0.9
