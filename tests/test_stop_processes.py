"""The command itself, in several processes: a signal to it ends all of them in good order; a second Ctrl-C at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from tiny import run, write_base, write_sft

from posttrain.config import LaunchOptions
from posttrain.launch import launcher_command, launcher_environment

# A shell that runs tests in the background has them ignore Ctrl-C.
HEED = "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
POSTTRAIN = HEED + "from posttrain.cli import main\nsys.exit(main())\n"
SUPERVISE = HEED + "import os\nfrom posttrain.launch import supervise\nsys.exit(supervise(sys.argv[1:], os.environ))\n"
# A run without torch, in the middle of a step that does not end.
TRAINS = """
import time
from posttrain import stop
with stop.handled():
    stop.enter(stop.Phase.STEPS)
    print("a step", flush=True)
    time.sleep(60)
"""


class Command:
    """A program in a session of its own.

    Args:
        program: in Python.
        words: for it.
        folder: for what it says.
    """

    def __init__(self, program: str, words: list[str], folder: Path, **variables: str) -> None:
        self._log = folder / "said.txt"
        self.processes: set[int] = set()
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", program, *words],
                env=os.environ | variables,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_for(self, text: str) -> None:
        """Until it has said something."""
        deadline = time.monotonic() + 150
        while text not in self.said() and self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert text in self.said(), self.said()
        self.processes |= {child.pid for child in psutil.Process(self._process.pid).children(recursive=True)}

    def send(self, number: int) -> None:
        """A signal to the command alone."""
        self._process.send_signal(number)

    def end(self) -> int:
        """Its exit code; none of its processes is left."""
        code = self._process.wait(120)
        deadline = time.monotonic() + 10
        while (left := [one for one in self.processes if _is_running(one)]) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not left
        return code

    def said(self) -> str:
        """All of its output."""
        return self._log.read_text(encoding="utf-8")


def _is_running(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_two_processes_stop_at_the_same_step_and_the_command_says_so_once(tmp_path: Path) -> None:
    data, words = write_sft(tmp_path / "rows.jsonl"), list[Any]()
    more = ["--max_steps", "100000", "--num_processes", "2", "--per_device_train_batch_size", "2"]
    run("sft", write_base(tmp_path / "base"), data, tmp_path / "out", *more, starter=words.extend)
    command = Command(POSTTRAIN, words, tmp_path)
    command.wait_for("'loss'")
    command.send(signal.SIGINT)
    command.send(signal.SIGINT)  # the same Ctrl-C, which may come to a process in more than one way
    assert command.end() == 130
    said = [line for line in command.said().splitlines() if "posttrain: " in line]
    (folder,) = (tmp_path / "out").glob("checkpoint-*")
    assert said == [
        "posttrain: SIGINT: stopping after this step; Ctrl-C again stops at once",
        f"posttrain: stopped by SIGINT after step {folder.name.partition('-')[2]} of 100000; kept in {folder}; "
        "the same command goes on from there",
    ]
    assert {f"rng_state_{rank}.pth" for rank in (0, 1)} <= {path.name for path in folder.iterdir()}
    assert json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))["processes"] == 2
    assert "Traceback" not in command.said()


def test_a_second_ctrl_c_ends_all_processes_at_once(tmp_path: Path) -> None:
    (tmp_path / "trains.py").write_text(TRAINS)
    launch = LaunchOptions(num_processes=2, accelerate_config="cpu")
    words = launcher_command(launch, [str(tmp_path / "trains.py")])
    command = Command(SUPERVISE, words, tmp_path, **launcher_environment(launch))
    command.wait_for("a step\na step\n")
    os.kill(max(command.processes), signal.SIGSTOP)  # one that hears nothing any more
    command.send(signal.SIGUSR1)
    command.wait_for("posttrain: SIGUSR1: stopping after this step")
    command.send(signal.SIGINT)
    assert command.end() == 130
    assert command.said().splitlines()[-1] == "posttrain: stopped at once; what was saved before is kept"
    assert "Traceback" not in command.said()


# A run that has agreed to end, and no longer takes signals.
ENDS = """
import os, signal, sys, time
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
if os.environ["RANK"] == "0":
    os.kill(os.getppid(), signal.SIGTERM)
time.sleep(1)
sys.exit(143)
"""


def test_a_process_that_tells_of_the_end_is_not_asked_to_end(tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_text(ENDS)
    launch = LaunchOptions(num_processes=2, accelerate_config="cpu")
    words = launcher_command(launch, [str(tmp_path / "ends.py")])
    command = Command(SUPERVISE, words, tmp_path, **launcher_environment(launch))
    assert command.end() == 143
    assert command.said() == ""
