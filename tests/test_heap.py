"""Memory that a step gives back is there for the next one."""

import os
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
@pytest.mark.parametrize("variable", ["MALLOC_MMAP_THRESHOLD_", "MALLOC_ARENA_MAX"])
def test_pages_of_a_step_are_those_of_the_last_one(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless somebody has told glibc what to keep; other variables say nothing of that."""
    for name in [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)
    keeps = variable == "MALLOC_ARENA_MAX"
    monkeypatch.setenv(variable, "1" if keeps else str(2**22))
    command = [sys.executable, "-c", STEPS, str(int(keeps))]
    faults = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    # A fault brings 4 KiB, or 2 MiB where the system hands out large pages unasked: 40 at least.
    assert faults < 10 if keeps else faults > 40
