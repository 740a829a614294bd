"""A few steps of a run in a process of their own, measured: what a formula cannot know of this machine.

The process is given the very flags of the run, but for its length, what it would write, and the order of rows: the
largest micro-batch of the run is among those that it sees, and the others are from all over the run. What it writes
goes to a folder that is removed; prepared rows stay in the cache, where the run finds them.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.errors import RunFailed
from posttrain.planning.batches import Load, Steps, micro_batches, num_sizes
from posttrain.planning.case import Case
from posttrain.planning.predict import predict_memory, step_seconds
from posttrain.planning.report import Probe

_MOST_LAID_OUT = 200_000  # micro-batches among which the largest is looked for


def take_probe(case: Case, steps: Steps, method: str, words: Sequence[str], params: str | None, number: int) -> Probe:
    """Run the probe.

    Args:
        case: of the run.
        steps: of the run.
        method, words, params: the command that is planned.
        number: optimizer steps to take.

    Raises:
        RunFailed: it did not come to its end; its own words stand above.
    """
    with tempfile.TemporaryDirectory(prefix="posttrain-probe-") as folder:
        result = Path(folder) / "measured.json"
        request: dict[str, Any] = {
            "method": method,
            "words": list(words),
            "params": params,
            "steps": number,
            "rows": rows_of_probe(case, steps, number),
            "result": str(result),
            "output_dir": str(Path(folder) / "model"),
            "began": time.time(),
        }
        file = Path(folder) / "request.json"
        file.write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, "-m", "posttrain.planning.probe_run", str(file)]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode or not result.is_file():
            said = "\n".join(line for line in done.stderr.splitlines() if line.startswith("posttrain:")) or done.stderr
            raise RunFailed(f"--probe: the first steps of this run fail, as the run would:\n{said.strip()[-2000:]}")
        measured = json.loads(result.read_text(encoding="utf-8"))
    return _understood(case, steps, measured)


def rows_of_probe(case: Case, steps: Steps, number: int) -> list[int] | None:
    """Row numbers, in the order in which the probe takes them; None: as the run does."""
    rows = case.rows
    if case.samples or rows.is_sampled or case.config.is_streamed or len(rows.lengths) != rows.num_rows:
        return None
    size = steps.rows_in_micro_batch
    in_step = steps.micro_batches * steps.processes
    needed, there = number * in_step, min(steps.number * in_step, _MOST_LAID_OUT)
    run = list(itertools.islice(micro_batches(case.arguments, rows.num_rows, size), there))
    full = [index for index, batch in enumerate(run) if len(batch) == size] or list(range(len(run)))
    tokens = rows.lengths.tokens
    largest = max(full, key=lambda index: int(tokens[run[index]].sum()))
    spread = [full[round(place)] for place in np.linspace(0, len(full) - 1, needed)]
    spread[min(2 * in_step, needed - 1)] = largest  # when the optimizer's states are there
    return [int(row) for index in spread for row in run[index]]


def _understood(case: Case, steps: Steps, measured: dict[str, Any]) -> Probe:
    loads = [Load(**load) for load in measured["loads"]]
    in_step = steps.micro_batches
    later = loads[in_step:] or loads
    mean = Load(*(float(np.mean(values)) for values in zip(*map(_values, later), strict=True)))
    padded = not case.shape.by_segments
    largest = max(loads, key=lambda load: load.padded if padded else load.tokens)
    completion = mean.targets / max(1.0, mean.sequences) if case.samples else None
    widths = np.array([load.padded if padded else load.tokens for load in loads])
    of_generation = case.steps_of_generation * getattr(case.config, "num_iterations", 1) if case.samples else 0
    seen = num_sizes(widths, fills=not padded), -(-len(loads) // of_generation) if of_generation else 0
    seconds = tuple(measured["seconds"][1:])
    return Probe(
        seconds=seconds,
        of_processor=tuple(measured["of_processor"][1:]),
        peak=measured["peak"],
        start=measured["start"],
        completion=completion,
        mean=mean,
        largest=largest,
        seconds_by_formula=step_seconds(case, steps, completion or 0.0, mean),
        peak_by_formula=predict_memory(case, largest, completion or 0.0, *seen, evaluates=False).peak,
    )


def _values(load: Load) -> tuple[float, ...]:
    return tuple(vars(load).values())
