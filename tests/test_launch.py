"""How many processes start, what is said before they do, and how they end."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from launchers import Launchers
from torch.utils.file_baton import FileBaton

from posttrain.config import LaunchOptions, parse_command_line
from posttrain.errors import UserError
from posttrain.launch import _settle_processes, launcher_command, launcher_environment
from posttrain.left_locks import left_locks, tell_of_left_locks
from posttrain.processes import code_of_all

COMMAND = ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", "o"]


def settled(*words: str) -> tuple[bool, int | None]:
    """Whether a launcher is needed, and for how many processes."""
    config, launch = parse_command_line("sft", [*COMMAND, *words])
    needed = _settle_processes(launch, config)
    return needed, launch.num_processes


@pytest.mark.parametrize(
    ("gpus", "words", "expected"),
    [
        (4, "--accelerate_config fsdp2", (True, 4)),
        (4, "--accelerate_config multi_gpu", (True, 4)),
        (4, "--accelerate_config fsdp2 --num_processes 2", (True, 2)),
        (1, "--accelerate_config multi_gpu", (False, 1)),  # nothing to share: it happens in this process
        (1, "--accelerate_config fsdp2", (True, 1)),
        (0, "--accelerate_config multi_gpu", (False, 1)),
        (0, "--accelerate_config fsdp1", (True, 1)),
        (0, "--num_processes 3", (True, 3)),
        (4, "--num_processes 8 --use_cpu", (True, 8)),
        (4, "--accelerate_config multi_node --machine_rank 0 --main_process_ip 10.0.0.1", (True, 8)),
    ],
)
def test_as_many_processes_as_gpus(
    gpus: int, words: str, expected: tuple[bool, int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.accelerator.device_count", lambda: gpus)
    assert settled(*words.split()) == expected


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 2)
    with pytest.raises(UserError, match=r"8 processes are asked for and this machine has 2 GPUs.*--num_processes 2"):
        settled("--num_processes", "8")
    mine = tmp_path / "mine.yaml"
    mine.write_text("distributed_type: MULTI_GPU\nnum_processes: 3\n")
    with pytest.raises(UserError, match="3 processes are asked for"):
        settled("--config_file", str(mine))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody knows who holds a file")
def test_locks_that_a_killed_build_has_left_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of two locks, one is held by a process that builds, as torch's FileBaton holds it; the other by nobody."""
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    left, held = (tmp_path / "torch_extensions/py311_cpu" / name / "lock" for name in ("shm_comm", "cpu_adam"))
    for lock in (left, held):
        lock.parent.mkdir(parents=True)
    left.touch()
    baton = FileBaton(str(held))
    assert baton.try_acquire()
    try:
        tell_of_left_locks()
    finally:
        baton.release()
    [message] = caplog.messages
    assert message.endswith(f"remove it: rm '{left}'")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "torch_extensions/py311_cpu"))
    assert left_locks() == [left]  # there, nothing stands between


def test_deepspeed_is_looked_for_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[deepspeed\]'"):
        settled("--accelerate_config", "zero3")


@pytest.fixture(scope="module")
def launchers() -> Iterator[Launchers]:
    server = Launchers()
    yield server
    server.close()


SCRIPT = """
import os, sys
from posttrain.errors import UserError, report_mistakes

def fail():
    if sys.argv[1] == "all" or os.environ["LOCAL_RANK"] == sys.argv[1]:
        raise UserError("a mistake of the user")
    import time
    time.sleep(60)

sys.exit(report_mistakes(fail))
"""


@pytest.mark.parametrize("failing", ["all", "1"])
def test_a_mistake_in_several_processes_is_told_once(failing: str, launchers: Launchers, tmp_path: Path) -> None:
    """In all of them, or in one alone, which ends the others."""
    script = tmp_path / "child.py"
    script.write_text(SCRIPT)
    launch = LaunchOptions(num_processes=2, accelerate_config="cpu")
    done = launchers.run(launcher_command(launch, [str(script), failing]), launcher_environment(launch))
    assert done == (2, "posttrain: error: a mistake of the user\n")


@pytest.mark.parametrize(
    ("end", "code", "told"),
    [
        ("sys.exit(7)", 7, ""),
        ("os.kill(os.getpid(), 9)", 137, "process 1 was ended by SIGKILL; most likely this machine's memory ran out"),
    ],
)
def test_the_launcher_ends_as_its_processes_do(
    end: str, code: int, told: str, launchers: Launchers, tmp_path: Path
) -> None:
    script = tmp_path / "child.py"
    script.write_text(f"import os, sys\nif os.environ['RANK'] == '1':\n    {end}\nimport time\ntime.sleep(60)\n")
    launch = LaunchOptions(num_processes=2, accelerate_config="cpu")
    command = launcher_command(launch, [str(script)])
    done = launchers.run(command, launcher_environment(launch))
    assert done.code == code
    assert done.said.startswith(f"posttrain: error: {told}" if told else "") and len(done.said) < 300
    assert ("the same command goes on from the last checkpoint" in done.said) == bool(told)
    assert command[0] == sys.executable


def test_of_several_ends_the_first_cause_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of_all({0: 1, 1: -9, 2: 1}) == 137  # the others had waited for it
    assert "process 1 was ended by SIGKILL" in capsys.readouterr().err
    assert code_of_all({0: 2, 1: -6}) == 2
    assert capsys.readouterr().err == ""
    assert code_of_all({1: -11}) == 139
    assert capsys.readouterr().err.startswith("posttrain: error: process 1 was ended by SIGSEGV. Nothing is left")


@pytest.mark.parametrize(("end", "code"), [("sys.exit(2)", 2), ("os.kill(os.getpid(), 9)", 137)])
def test_a_file_for_one_process_ends_as_that_process_does(
    end: str, code: int, launchers: Launchers, tmp_path: Path
) -> None:
    script, file = tmp_path / "child.py", tmp_path / "one.yaml"
    script.write_text(f"import os, sys\n{end}\n")
    file.write_text('distributed_type: "NO"\nnum_processes: 1\n')
    launch = LaunchOptions(config_file=str(file))
    done = launchers.run(launcher_command(launch, [str(script)]), launcher_environment(launch))
    assert done.code == code
    assert "Traceback" not in done.said
    assert ("the process that trains was ended by SIGKILL" in done.said) == (code == 137)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a process that its parent has died")
@pytest.mark.parametrize("number", [2, 1])
def test_nobody_is_left_when_the_command_is_killed(number: int, tmp_path: Path) -> None:
    script, file = tmp_path / "child.py", tmp_path / "file.yaml"
    script.write_text(
        "import os, pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: pathlib.Path(sys.argv[1] + '-asked').touch())\n"
        "signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])\n"
        "pathlib.Path(sys.argv[1], str(os.getpid())).touch()\ntime.sleep(60)\n"
    )
    kind = '"NO"' if number == 1 else "MULTI_CPU"
    file.write_text(f"distributed_type: {kind}\nuse_cpu: true\nnum_processes: {number}\n")
    launch = LaunchOptions(config_file=str(file))
    (tmp_path / "pids").mkdir()
    command = launcher_command(launch, [str(script), str(tmp_path / "pids")])
    # Threads, such as libraries have, of which one may outlive that which has started the launcher.
    program = (
        "import json, os, sys, threading, time\nfrom posttrain.launch import supervise\n"
        "for _ in range(50):\n    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "supervise(json.loads(sys.argv[1]), os.environ)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, json.dumps(command)], env=os.environ | launcher_environment(launch)
    )
    deadline = time.monotonic() + 40
    while len(list((tmp_path / "pids").iterdir())) < number and time.monotonic() < deadline:
        time.sleep(0.05)
    children = [int(path.name) for path in (tmp_path / "pids").iterdir()]
    assert len(children) == number
    parent.kill()
    parent.wait()
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert not (tmp_path / "pids-asked").exists()  # to end in good order, and save


@pytest.mark.parametrize(("started", "whole"), [("", True), ("LOCAL_RANK", False), ("POSTTRAIN_LAUNCHED", False)])
def test_the_number_of_processes_is_a_launchers_to_say(
    started: str, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operators of Kubernetes set WORLD_SIZE in pods, where a launcher is still to start the processes."""
    for name in ("LOCAL_RANK", "POSTTRAIN_LAUNCHED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "1")
    if started:
        monkeypatch.setenv(started, "0")
    words = "--model_name_or_path m --dataset_name d --reward_funcs accuracy_reward --num_processes 2"
    words += " --per_device_train_batch_size 4 --num_generations 8"
    with contextlib.nullcontext() if whole else pytest.raises(UserError, match="num_generations"):
        parse_command_line("grpo", words.split())
