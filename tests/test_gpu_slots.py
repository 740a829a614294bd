"""One GPU a run: real processes that want the same ones, on a machine that need not have any."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain import gpu_slots, launch
from posttrain.config import parse_command_line
from posttrain.gpu_slots import SLOTS, VISIBLE, devices, take_slot

HOLDER = """
import os, sys
from posttrain.gpu_slots import take_slot
print(take_slot(), os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
sys.stdin.read()
"""


class Holder:
    """A process that takes a GPU, and keeps it until it is told to end."""

    def __init__(self, cache: Path, slots: str):
        environment = os.environ | {SLOTS: slots, "POSTTRAIN_CACHE": str(cache)}
        environment.pop(VISIBLE, None)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, "-c", HOLDER], env=environment, text=True, **pipes)

    def says(self) -> list[str]:
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()

    def complains(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.readline()

    def end(self) -> None:
        self.process.communicate()


@pytest.fixture
def forget() -> Iterator[None]:
    """What this process took is given back."""
    yield
    while gpu_slots._held:
        gpu_slots._held.pop().release()


def test_each_run_gets_a_gpu_of_its_own_and_a_third_one_waits(tmp_path: Path) -> None:
    first, second = Holder(tmp_path, "4,7"), Holder(tmp_path, "4,7")
    assert sorted([first.says(), second.says()]) == [["4", "4"], ["7", "7"]]
    third = Holder(tmp_path, "4,7")
    assert third.complains() == f"waiting for a GPU: 4, 7 are taken ({SLOTS})\n"
    first.process.send_signal(signal.SIGKILL)  # a run that is killed has nothing to give back in good order
    freed = third.says()
    assert freed in (["4", "4"], ["7", "7"])
    for holder in (first, second, third):
        holder.end()


def test_a_gpu_that_stands_twice_is_shared_by_two(tmp_path: Path) -> None:
    holders = [Holder(tmp_path, "0,0") for _ in range(2)]
    assert [holder.says() for holder in holders] == [["0", "0"]] * 2
    for holder in holders:
        holder.end()


def test_which_gpus_there_are(tmp_path: Path) -> None:
    assert devices({VISIBLE: "GPU-1a, 3"}) == ["GPU-1a", "3"]
    assert devices({VISIBLE: ""}) == devices({VISIBLE: "-1"}) == []
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho GPU-aa\necho GPU-bb\n")
    fake.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        assert devices({}) == ["GPU-aa", "GPU-bb"]
        fake.write_text("#!/bin/sh\necho 'no driver' >&2; exit 9\n")
        assert devices({}) == []


@pytest.mark.usefixtures("forget")
def test_auto_takes_of_what_is_visible_and_nothing_where_nothing_is(tmp_path: Path) -> None:
    environment = {SLOTS: "auto", VISIBLE: ""}
    assert take_slot(environment, tmp_path) is None and environment[VISIBLE] == ""
    assert take_slot({VISIBLE: "2,3"}, tmp_path) is None  # not asked for
    environment = {SLOTS: "auto", VISIBLE: "2,3"}
    assert take_slot(environment, tmp_path) == "2" and environment[VISIBLE] == "2"
    assert take_slot(environment, tmp_path) is None  # one a process


@pytest.mark.usefixtures("forget")
@pytest.mark.parametrize(
    ("flags", "taken"),
    [("", "5"), ("--accelerate_config single_gpu", "5"), ("--accelerate_config cpu", None), ("--use_cpu", None)],
)
def test_a_run_in_one_process_takes_one_unless_it_is_on_the_cpu(
    flags: str, taken: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SLOTS, "5")
    monkeypatch.setenv(VISIBLE, "0,1")
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path))
    words = f"--model_name_or_path org/model --dataset_name org/rows --output_dir {tmp_path / 'o'} {flags}".split()
    seen = []
    launch.train(*parse_command_line("sft", words), [], lambda config: seen.append(os.environ[VISIBLE]))
    assert seen == [taken or "0,1"]
