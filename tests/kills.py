"""Training runs that are killed at chosen moments and started again, as cheaply as processes go.

As a program this is a server: it has imported everything once, and forks a process for each run that a line on its
standard input asks for. A run is killed from outside after a time, or kills itself right before the n-th event of a
kind: a call by which it changes files, or a batch of rewards. What it was writing last may be torn before: of a file
that a killed process has not written to its end, any beginning may be there.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from forks import Program, free_ports, load_all

# What a process tells Python's audit hooks before it changes a file; the last three are told by this module's own hand.
OPEN, REWARD = "open", "kills.reward"
WRITES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "shutil.rmtree", "kills.fsync", "kills.save")
REWARDS = """
import sys

def share_of_some(completion_ids, **columns):
    sys.audit("kills.reward")
    return [float(sum(token % 3 == 0 for token in ids) * (len(ids) > 5) > 1) for ids in completion_ids]

def length(completion_ids, **columns):
    return [-abs(len(ids) - 5) / 8 for ids in completion_ids]
"""
LONGEST = 60.0  # seconds that a run may take


@dataclasses.dataclass(frozen=True)
class Kill:
    """When a process dies.

    Args:
        seconds: after its start; None: before an event.
        kind: of the event; see `kind_of`.
        number: of the event among those of its kind, from 1.
        rank: of the process that the event is of.
        torn: how much of the file that was written last is there, from 0 to 1.
    """

    seconds: float | None = None
    kind: str = ""
    number: int = 0
    rank: int = 0
    torn: float = 1.0


@dataclasses.dataclass(frozen=True)
class Done:
    """How a run ended.

    Args:
        code: exit code, -9 where it was killed.
        output: all that it said.
        seconds: it took.
        events: rank, kind and name of each event, in order; of a run that is killed, the one that it died before.
        left_behind: processes that were still there 5 seconds after it.
    """

    code: int
    output: str
    seconds: float
    events: list[str]
    left_behind: int


def kind_of(event: str, path: str) -> str:
    """What a run is at: its rewards, its data, a checkpoint, the removal of one, or the finished model.

    Args:
        event: of Python's audit hooks.
        path: within the run's folder.
    """
    if event == REWARD:
        return "rewards"
    if path.startswith("cache"):
        return "data"
    if "removing" in path:
        return "removal"
    return "checkpoint" if "checkpoint" in path else "model"


class Server(Program):
    """A process that forks runs.

    Args:
        model: a folder; what is only slow the first time that a model is loaded happens before the first run.
        program: that serves; this one, or one that does the same with other kills.
    """

    def __init__(self, model: Path, program: str = __file__) -> None:
        # OMP_NUM_THREADS: no threads are there when it forks, and the results do not depend on what else runs.
        super().__init__("-W", "error", program, str(model), OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")

    def run(self, words: list[str], folder: Path, processes: int = 1, kill: Kill | None = None) -> Done:
        """Runs `posttrain WORDS` in a folder, until it ends or is killed."""
        folder.mkdir(parents=True, exist_ok=True)
        when = None if kill is None else dataclasses.asdict(kill)
        return Done(**self.ask(words=words, folder=str(folder), processes=processes, kill=when))


# -- the server


def _serve(model: str) -> None:
    load_all(Path(model))
    for line in sys.stdin:
        print(json.dumps(_run(**json.loads(line))), flush=True)


def _run(words: list[str], folder: str, processes: int, kill: dict[str, Any] | None) -> dict[str, Any]:
    log, when = Path(folder).with_suffix(".log"), None if kill is None else Kill(**kill)
    began = time.monotonic()
    port = free_ports(1)[0] if processes > 1 else 0
    with open(log, "wb") as output:
        told = os.open(Path(folder).with_suffix(".events"), os.O_CREAT | os.O_TRUNC | os.O_RDWR | os.O_APPEND)
        ranks: dict[int, int] = {}
        for rank in range(processes):
            process = os.fork()
            if process == 0:
                _become(words, folder, rank, processes, port, when, output.fileno(), told)
            ranks[process] = rank
            os.setpgid(process, min(ranks))
        codes = _wait(ranks, None if when is None else when.seconds, began)
    seconds = time.monotonic() - began
    group, left = min(ranks), 0
    for _ in range(100):
        if not (left := _alive(group)):
            break
        time.sleep(0.05)
    if left:
        os.killpg(group, signal.SIGKILL)
    os.lseek(told, 0, os.SEEK_SET)
    with os.fdopen(told) as lines:
        names = lines.read().splitlines()
    code = next((code for code in codes if code), 0)
    text = log.read_text(encoding="utf-8", errors="replace")
    return {"code": code, "output": text, "seconds": seconds, "events": names, "left_behind": left}


def _wait(ranks: dict[int, int], limit: float | None, began: float) -> list[int]:
    """The exit codes of all, the first that ended first. When one is killed, so are the others, a moment later."""
    waiting, codes, deadline = set(ranks), list[int](), began + (LONGEST if limit is None else limit)
    while waiting:
        for process in list(waiting):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                waiting.remove(process)
                codes.append(os.waitstatus_to_exitcode(status))
                if codes[-1] < 0:
                    deadline = min(deadline, time.monotonic() + 0.02)
        if time.monotonic() > deadline:
            for process in waiting:
                os.kill(process, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(0.003)
    return codes


def _alive(group: int) -> int:
    """Processes of a group; a dead one that nobody has waited for yet is none."""
    count = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        count += int(fields[2]) == group and fields[0] not in "ZX"
    return count


# -- a run


def _become(
    words: list[str], folder: str, rank: int, processes: int, port: int, kill: Kill | None, output: int, told: int
) -> None:
    """Turns a fork of the server into `posttrain WORDS`; does not return."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(folder)
        if processes > 1:
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            os.environ.update({name: str(value) for name, value in numbers.items()})
            os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "POSTTRAIN_LAUNCHED": "1"})
        if kill is None or (kill.seconds is None and kill.rank == rank):
            _listen(kill, rank, told)
        sys.argv = ["posttrain", *words]
        from posttrain.cli import main

        code = main(words)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _listen(kill: Kill | None, rank: int, told: int) -> None:
    """Tells of each event, or dies before one."""
    import torch

    here, counts = os.getcwd() + os.sep, Counter[str]()
    fsync, save = os.fsync, torch.save

    def audited_fsync(file: Any) -> None:
        sys.audit("kills.fsync", os.readlink(f"/proc/self/fd/{file if isinstance(file, int) else file.fileno()}"))
        fsync(file)

    def audited_save(value: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        sys.audit("kills.save", str(file))
        save(value, file, *args, **kwargs)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == OPEN:
            if isinstance(args[0], int) or not _writes(args[1], args[2]):
                return
        elif event not in WRITES and event != REWARD:
            return
        path = "" if event == REWARD else _path(args, event)
        if event != REWARD and not path.startswith(here):
            return
        path = path.removeprefix(here)
        kind = kind_of(event, path)
        counts[kind] += 1
        is_last = kill is not None and kind == kill.kind and counts[kind] == kill.number
        if kill is None or is_last:
            os.write(told, f"{rank} {kind} {event} {path}\n".encode())
        if kill is not None and is_last:
            _tear(here, kill.torn)
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync, torch.save = audited_fsync, audited_save  # type: ignore[assignment]
    sys.addaudithook(hook)


def _writes(mode: str | None, flags: int) -> bool:
    return any(letter in mode for letter in "wax+") if mode else bool(flags & (os.O_WRONLY | os.O_RDWR))


def _path(args: tuple[Any, ...], event: str) -> str:
    path = os.fsdecode(args[0])
    at = args[-1] if event in ("os.remove", "os.rmdir", "os.mkdir") else -1
    return os.path.join(os.readlink(f"/proc/self/fd/{at}"), path) if at >= 0 else os.path.abspath(path)


def _tear(here: str, share: float) -> None:
    """Cuts what was written last off, if that is still beside its place."""
    files = [path for beside in Path(here).rglob(".saving*") for path in beside.rglob("*") if path.is_file()]
    if share < 1 and files:
        last = max(files, key=lambda path: path.stat().st_mtime_ns)
        os.truncate(last, int(last.stat().st_size * share))


if __name__ == "__main__":
    _serve(sys.argv[1])
