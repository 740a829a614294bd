"""Everything that is to be known of a GPU, inside 8 minutes: `python benchmarks/gpu.py --to DIR` on a machine with one.

Checks kernels and log-probs, trains a model of the shape of Qwen2-0.5B (random weights, 151,936 tokens) by the command
line of every method, samples from it, and says where the time goes; beside trl with `--peer_python`. Nothing is
fetched. Leaves results.json, results.md and the log of its process. Each part has a time of its own; one that fails is
told of, one that hangs is ended, and the others go on. `--tiny` does all that a CPU can with a tiny model, to see
whether this script still runs: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gpu_parts.parts import BUDGETS, budget_of, work
from gpu_parts.tables import page

STARTING = 90.0  # seconds that a process may take to load its libraries and to write the model


def read(folder: Path) -> list[dict[str, Any]]:
    """What the working process has told so far."""
    file = folder / "events.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def states_of(events: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What has become of each part that has begun: "done", "failed", "running"."""
    states: dict[str, dict[str, Any]] = {}
    for event in events:
        if event["event"] in ("begin", "done", "failed"):
            state = "running" if event["event"] == "begin" else event["event"]
            states[event["part"]] = {"state": state} | {k: v for k, v in event.items() if k not in ("event", "part")}
    return states


def run_parts(folder: Path, args: argparse.Namespace, ends: float) -> dict[str, dict[str, Any]]:
    """Has the parts run in another process, and in a new one where that is lost.

    Args:
        folder: for what the processes tell.
        args: of the command line.
        ends: when all has to be over, on the clock of time.time.
    """
    lost: dict[str, str] = {}
    while left := [name for name in args.parts if name not in states_of(read(folder)) | lost]:
        if time.time() >= ends:
            lost |= dict.fromkeys(left, "no time left")
            break
        words = ["--parts", *left, "--working_in", str(folder)]
        words += ["--tiny"] if args.tiny else []
        words += ["--peer_python", str(args.peer_python)] if args.peer_python else []
        with open(args.to / "log.txt", "a", encoding="utf-8") as log:
            worker = subprocess.Popen([sys.executable, __file__, *words], stdout=log, stderr=subprocess.STDOUT)
            try:
                why = watch(worker, folder, ends, args.peer_python is not None)
            finally:
                worker.kill()  # where this process is asked to end; nothing where the other has
        for name, part in states_of(read(folder)).items():
            if part["state"] == "running":
                lost.setdefault(name, why)
        if not any(name in lost or name in states_of(read(folder)) for name in left):
            lost |= dict.fromkeys(left, f"the process did not begin: {why}")  # nor would another one
    states = states_of(read(folder))
    return {name: {"state": lost[name]} if name in lost else states[name] for name in args.parts}


def watch(worker: subprocess.Popen[bytes], folder: Path, ends: float, with_peer: bool) -> str:
    """Waits for a process, and ends it where it takes too long; returns why it is over."""
    begun = time.time()
    while worker.poll() is None:
        time.sleep(0.1)
        events = [event for event in read(folder) if event["time"] >= begun]
        last = events[-1] if events else {"event": "start", "time": begun}
        allowed = 1.5 * budget_of(last["part"], with_peer) if last["event"] == "begin" else STARTING
        late = time.time() > last["time"] + allowed
        if late or time.time() > ends:
            worker.kill()
            worker.wait()
            return f"ended after {time.time() - last['time']:.0f} s" + ("" if late else ", at the end of all time")
    return f"the process ended with code {worker.returncode}"


def in_memory() -> str | None:
    """Where the model of a GiB, which all parts read, is written in a second; None where there is no room for it."""
    folder = Path("/dev/shm")
    has_room = folder.is_dir() and shutil.disk_usage(folder).free > 4 * 2**30
    return str(folder) if has_room else None


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--to", type=Path, default=Path("work/gpu"), help="folder of the results")
    parser.add_argument("--parts", nargs="+", choices=list(BUDGETS), default=list(BUDGETS), metavar="PART")
    parser.add_argument("--seconds", type=float, default=480.0, help="after which everything is over")
    parser.add_argument("--peer_python", type=Path, help="of an environment with trl, to be measured beside")
    parser.add_argument("--tiny", action="store_true", help="on the CPU, in seconds; the figures mean nothing")
    parser.add_argument("--working_in", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.tiny:
        import torch

        if not torch.cuda.is_available():
            parser.error("torch finds no GPU here; --tiny shows on a CPU whether the script runs")
    return args


def main() -> int:
    """Runs the parts, prints the table and stores everything; 1 where a part was not measured."""
    args = parse_arguments()
    if args.working_in is not None:
        work(args.working_in, args.parts, args.tiny, args.peer_python)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # folders in memory are removed then, too
    began = time.time()
    args.to.mkdir(parents=True, exist_ok=True)
    (args.to / "log.txt").unlink(missing_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="posttrain-gpu-", dir=in_memory()))
    try:
        parts = run_parts(folder, args, began + args.seconds)
        facts = {name: value for event in read(folder) for name, value in event.get("facts", {}).items()}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    title = "Tiny, to see whether it runs" if args.tiny else "One GPU, a model of the shape of Qwen2-0.5B"
    facts["seconds in all"] = round(time.time() - began, 1)
    results = {"title": title, "facts": facts, "parts": parts}
    (args.to / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    text = page(results)
    (args.to / "results.md").write_text(text, encoding="utf-8")
    print(text)
    return int(any(part["state"] != "done" for part in parts.values()))


if __name__ == "__main__":
    sys.exit(main())
