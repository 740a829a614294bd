"""A sweep in DVC's queue: put there, run by its workers, waited for."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.errors import RunFailed, Stopped, UserError
from posttrain.experiment.sweep.grid import Run
from posttrain.experiment.sweep.outcome import outcome
from posttrain.gpu_slots import SLOTS, devices
from posttrain.terminal import say

_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_WITHOUT_WORKER = 30.0  # a worker that had nothing to do leaves, maybe just as the new ones are started
_SECONDS_IN_NO_LIST = 10.0  # an entry on its way from the queue to a worker is for a moment in neither
_ENDS = ("Success", "Failed", "Removed")
_LINES_OF_LOG = 15


def run_grid(grid: Sequence[Run], jobs: int, stages: Sequence[str], root: Path = Path()) -> int:
    """Queue the combinations, run them, and print what came out.

    Args:
        grid: the combinations.
        jobs: how many run at a time.
        stages: targets of DVC; empty: all.
        root: the repository.

    Returns:
        The exit code: 1 where one failed.
    """
    environment = worker_environment()
    queue = _Queue(root)
    taken = set(queue.states())
    for run in grid:
        if run.name in taken:
            raise UserError(
                f"the queue still holds a {run.name} of before; `dvc queue remove {run.name}` takes it out, or "
                "`dvc queue remove --all` all that it holds"
            )
    _warn(root, stages, environment)
    try:
        _put(root, environment, grid, stages)
        say(f"{len(grid)} experiments are queued; {jobs} run at a time")
        states = _wait(queue, [run.name for run in grid], lambda: _start(root, environment, jobs))
    except KeyboardInterrupt:
        raise Stopped(signal.SIGINT, _how_to_stop(queue.states(), grid)) from None
    failed = [run.name for run in grid if states[run.name] != "Success"]
    print(outcome(grid, failed, root))
    for name in failed:
        if states[name] == "Removed":
            say(f"{name} was taken out of the queue")
            continue
        log = _dvc(root, environment, "queue", "logs", name).stdout.rstrip().splitlines()
        say("\n".join([f"{name} failed; the end of `dvc queue logs {name}`:", *log[-_LINES_OF_LOG:]]))
    return 1 if failed else 0


def worker_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables of DVC's workers: the python of this environment first, so that stages meet it, and one GPU a run
    where there are GPUs."""
    here = str(Path(sys.executable).parent)
    found = dict(environment) | {"PATH": f"{here}{os.pathsep}{environment.get('PATH', '')}"}
    if SLOTS not in found and devices(found):
        found[SLOTS] = "auto"
    return found


class _Queue:
    """DVC's queue, asked in this process: `dvc queue status` takes a second of a core each time."""

    def __init__(self, root: Path):
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        try:
            self.queue: Any = Repo(str(root)).experiments.celery_queue
        except DvcException as error:
            raise UserError(f"{root.resolve()} is not a repository of DVC: {error}") from error

    def states(self) -> dict[str, str]:
        """Queued, Running, Success or Failed, by name."""
        return {str(entry["name"]): str(entry["status"]) for entry in self.queue.status()}


def _put(root: Path, environment: Mapping[str, str], grid: Sequence[Run], stages: Sequence[str]) -> None:
    for number, run in enumerate(grid):
        words = [word for setting in run.settings for word in ("-S", setting)]
        done = _dvc(root, environment, "exp", "run", "--queue", "--name", run.name, *words, *stages)
        if done.returncode:
            left = f"; {number} before it wait in the queue: `dvc queue remove --queued`" if number else ""
            raise UserError(f"DVC does not take {' '.join(run.settings)}: {_last_line(done)}{left}")


def _wait(queue: _Queue, names: Sequence[str], start: Any) -> dict[str, str]:
    from tqdm import tqdm

    start()
    idle_since = time.monotonic()
    seen = dict.fromkeys(names, idle_since)
    with tqdm(total=len(names), desc="Experiments", unit="run") as bar:
        while True:
            found, now = queue.states(), time.monotonic()
            seen |= {name: now for name in names if name in found}
            gone = {name for name in names if now - seen[name] > _SECONDS_IN_NO_LIST}  # somebody took them out
            states = {name: "Removed" if name in gone else found.get(name, "Queued") for name in names}
            bar.n = sum(state in _ENDS for state in states.values())
            running = [name for name, state in states.items() if state == "Running"]
            bar.set_postfix_str(", ".join(running), refresh=True)
            if bar.n == len(names):
                return states
            if any(state == "Running" for state in found.values()):
                idle_since = now
            elif now - idle_since > _SECONDS_WITHOUT_WORKER:
                start()
                idle_since = now
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def _start(root: Path, environment: Mapping[str, str], jobs: int) -> None:
    done = _dvc(root, environment, "queue", "start", "--jobs", str(jobs))
    if done.returncode:
        raise RunFailed(f"DVC cannot start the queue: {_last_line(done)}")


def _how_to_stop(states: Mapping[str, str], grid: Sequence[Run]) -> str:
    own = [states.get(run.name, "Queued") for run in grid]
    return (
        f"no longer watching, and the queue goes on ({own.count('Running')} running, {own.count('Queued')} waiting, "
        f"{sum(state in _ENDS for state in own)} done). `dvc queue status` tells how far it is; `dvc queue stop` ends "
        "after what runs, `dvc queue stop --kill` at once; `dvc queue start` goes on, and `dvc queue remove --queued` "
        "forgets what waits"
    )


def _warn(root: Path, stages: Sequence[str], environment: Mapping[str, str]) -> None:
    """Say what of the working tree the copies will not have, or will do again in each run."""
    listed = _call(root, environment, "git", "ls-files", "--others", "--exclude-standard", "--", "src", "scripts")
    new = listed.stdout.split()
    if new:
        say(f"not known to git, so the experiments do not see it: {', '.join(new[:5])}; `git add` it")
    done = _dvc(root, environment, "status", "--json", *(["--with-deps", *stages] if stages else []))
    changed = list(json.loads(done.stdout)) if done.returncode == 0 and done.stdout else []
    if changed:
        say(f"not up to date: {', '.join(changed)}; what of it comes first runs in each experiment (once: `dvc repro`)")


def _dvc(root: Path, environment: Mapping[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return _call(root, environment, sys.executable, "-m", "dvc", *words)


def _call(root: Path, environment: Mapping[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command; in a session of its own, so that Ctrl-C does not reach the workers that it starts, and with files
    for what it says: a pipe would stay open for as long as those workers live."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        done = subprocess.run(
            words,
            cwd=root,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            check=False,
            start_new_session=True,
        )
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(words, done.returncode, out.read(), err.read())


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1].removeprefix("ERROR: ") if lines else f"exit code {done.returncode}"
