"""Measures a cell: both sides alive at once, their steps in turn."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.comparison.cells import Cell
from benchmarks.comparison.floors import work_of
from benchmarks.in_turn import ROOT, Run, own_environment
from posttrain.config import parse_command_line
from posttrain.machine import cpu_model
from posttrain.planning import plan
from posttrain.planning.case import case_of
from posttrain.runs import code_digest, digest_of

PEER_PACKAGES = ("trl==1.16.0", "torch==2.13.0", "transformers==5.23.0", "peft")
PEER = ROOT / ".venv-peer/bin/python"
WARM_UP = 2  # steps that are not counted
STEPS = {"4M": 5, "27M": 3}  # that are
_SHARED = ("torch", "transformers", "accelerate", "datasets", "peft")
_MEASURES = ("cells", "measuring")  # modules whose change changes what is measured; beside them what the runs load
_IMPORT = "import gc; gc.disable(); from transformers import Trainer"


def make_peer() -> None:
    """An environment with the peer; what both sides share has the same versions in both."""
    print(f"posttrain: making .venv-peer with {', '.join(PEER_PACKAGES)}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", PEER.parents[1]], check=True)
    pip = [PEER, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--constraint", ROOT / "constraints.txt", *PEER_PACKAGES], check=True)


def about(peer: Path, cores: int) -> dict[str, Any]:
    """Where it is measured, and with which versions.

    Args:
        peer: interpreter of the peer's environment.
        cores: that each side computes on.

    Raises:
        SystemExit: the two sides have not the same libraries.
    """
    versions = {}
    for side, python, names in (("own", sys.executable, _SHARED), ("peer", str(peer), (*_SHARED, "trl"))):
        words = f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {names!r}}}))"
        done = subprocess.run([python, "-c", words], capture_output=True, text=True, check=True)
        versions[side] = json.loads(done.stdout)
    apart = [n for n in _SHARED if _plain(versions["own"][n]) != _plain(versions["peer"][n])]
    if apart:
        sys.exit(f"{peer} has not the same {' and '.join(apart)} as this environment: remove .venv-peer and start anew")
    return {"cpu": cpu_model(), "cores": cores, **{n: _plain(v) for n, v in versions["peer"].items()}}


def _plain(version: str) -> str:
    """Without the build: 2.13.0 of 2.13.0+cpu."""
    return version.partition("+")[0]


def key_of(cell: Cell, where: dict[str, Any]) -> str:
    """A hash of what changes the figures of a cell: flags, versions, machine, code.

    Args:
        cell: to be measured.
        where: as `about` returns it.
    """
    here = Path(__file__).resolve().parent
    files = [*(here / f"{name}.py" for name in _MEASURES), here.parent / "turn_taking.py", here.parent / "material.py"]
    texts = [file.read_text(encoding="utf-8") for file in files]
    return digest_of([cell.name, cell.flags(Path("material"), Path("output")), where, code_digest(), texts])[:16]


def measure(cell: Cell, material: Path, peer: Path, cores: int, steps: int, starts: int = 1) -> dict[str, Any]:
    """Both sides of a cell.

    Args:
        cell: to be measured.
        material: folder of models and rows.
        peer: interpreter of the peer's environment.
        cores: that each side computes on.
        steps: that are counted.
        starts: of each side; all but the first are those of runs that take no step.

    Returns:
        Plain data: of each side ("own", "peer") seconds, processor seconds, losses and tokens of each step, bytes held
        at most and before the first step, seconds and processor seconds from the command to the first step (the median
        of the starts; of the processor all of them, too), and those of the processor that it took at most while it
        waited; what the
        steps held on average (load), the least work in them (work), the peak that a plan predicts (planned_peak), and
        of one more step of posttrain, under the profiler, seconds by kind of operation (profile).

    Raises:
        RunEnded: one of them failed.
    """
    with tempfile.TemporaryDirectory(prefix="posttrain-bench-") as scratch, ExitStack() as stack:
        # The second starts while the first one waits.
        runs = {"own": stack.enter_context(_run("own", cell, material, sys.executable, cores, Path(scratch)))}
        runs["peer"] = stack.enter_context(_run("peer", cell, material, str(peer), cores, Path(scratch)))
        sides = {side: _started(run.started[0]) for side, run in runs.items()}
        before = {side: run.take(WARM_UP)[0] for side, run in runs.items()}
        tokens = {side: report["num_tokens"][-1] for side, report in before.items()}
        loads = []
        for number in range(steps):
            for side in ("own", "peer") if number % 2 else ("peer", "own"):
                [report] = runs[side].take(1)
                one = sides[side]
                for name in ("seconds", "processor", "losses", "grad_norms"):
                    one.setdefault(name, []).extend(report[name])
                one.setdefault("tokens", []).append(report["num_tokens"][0] - tokens[side])
                tokens[side] = report["num_tokens"][0]
                one["peak"] = report["peak"]
                one["idle"] = max(report["idle"], one.get("idle", 0.0))
                loads.extend(report.get("loads", []))
        [profiled] = runs["own"].take(-1)
        flags = [*cell.flags(material, Path(scratch) / "planned"), "--cache_dir", f"{scratch}/planned-cache"]
        case = case_of(*parse_command_line(cell.command, flags))
        flags[flags.index("--max_steps") + 1] = str(WARM_UP + steps + 1)  # a CPU in half precision grows with steps
        planned = plan(*parse_command_line(cell.command, flags)).peak
    pythons = {"own": sys.executable, "peer": str(peer)}
    seconds = {side: [(one["start"], one["start_processor"])] for side, one in sides.items()}
    for _ in range(1, starts):
        with tempfile.TemporaryDirectory(prefix="posttrain-bench-") as scratch:  # whose caches are empty
            for side, python in pythons.items():
                with _run(side, cell, material, python, cores, Path(scratch)) as run:
                    again = _started(run.started[0])
                seconds[side].append((again["start"], again["start_processor"]))
    for side, found in seconds.items():
        clock, processor = zip(*found, strict=True)
        medians = {"start": statistics.median(clock), "start_processor": statistics.median(processor)}
        sides[side] |= medians | {"starts_processor": list(processor)}
    return {
        "cell": dataclasses.asdict(cell),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        **sides,
        "load": {name: sum(load[name] for load in loads) / steps for name in loads[0]},
        "work": dataclasses.asdict(work_of(cell, loads, case.shape, case.setting)),
        "planned_peak": planned,
        "profile": profiled["profile"],
    }


def _started(report: dict[str, Any]) -> dict[str, Any]:
    return {name: report[name] for name in ("start", "start_processor", "before")}


def _run(side: str, cell: Cell, material: Path, python: str, cores: int, scratch: Path) -> Run:
    """A run with empty caches, that sees nothing of posttrain but the benchmarks where it is the peer's."""
    module = "benchmarks.own_run" if side == "own" else "benchmarks.comparison.peer_run"
    environment = {
        "HF_HOME": str(scratch / side),
        "HF_HUB_OFFLINE": "1",
        "POSTTRAIN_CACHE": str(scratch / "cache"),
        "OMP_NUM_THREADS": str(cores),  # accelerate's launcher would give the peer one
        "PYTHONPATH": str(ROOT),
    }
    if side == "own":
        environment |= own_environment(cores)

    def command(address: str, folder: Path) -> Sequence[str]:
        return [python, "-m", module, address, cell.command, *cell.flags(material, folder / "output")]

    return Run(command, environment)


def import_seconds() -> dict[str, float]:
    """Seconds, and seconds of the processor, of an import of transformers' Trainer without garbage collection: the
    floor of every start."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.time()
    subprocess.run([sys.executable, "-c", _IMPORT], env=os.environ | own_environment(1), check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    of_processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": time.time() - began, "processor": of_processor}


def code() -> str:
    """The state of posttrain's code."""
    return code_digest()[:12]
