"""Measures how time and memory grow:

    .venv/bin/python -m benchmarks.scaling [--parts batch length …] [--rounds 5] [--to FILE]

Each part that is measured is stored at once in FILE (JSON), beside those that were measured before; `--tables` prints
what FILE holds, as markdown, `--pictures FOLDER` draws it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.scaling import pictures, points, prefix, sampling, tables, turns
from posttrain.machine import cpu_model, num_cores

FILE = Path(__file__).with_name("results.json")
PROMPTS, COMPLETION, GROUPS = [0, 128, 512, 2048], 128, [1, 2, 4, 8, 16, 32, 64]


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.cores)
    transformers.utils.logging.disable_progress_bar()
    results = json.loads(args.to.read_text(encoding="utf-8")) if args.to.is_file() else {"parts": {}}
    if not args.tables:
        with tempfile.TemporaryDirectory(prefix="posttrain-scaling-") as temporary:
            for part in args.parts:
                found = measure(part, Path(temporary), args)
                kept = results["parts"].get(part, {"measured": []})["measured"]
                if part == "prefix":  # other prompts may have been measured before
                    measured = {one["prompt"] for one in found}
                    found = [one for one in kept if one["prompt"] not in measured] + found
                results["parts"][part] = {"about": about(args.cores), "rounds": args.rounds, "measured": found}
                args.to.parent.mkdir(parents=True, exist_ok=True)
                args.to.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if args.pictures is not None:
        pictures.write(results["parts"], args.pictures)
    for title, table in tables.all_tables(results).items():
        print(f"{title}\n\n{table}\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = [*points.all_series(1), "sampling", "prefix"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts, help="what to measure; unset: everything")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each point")
    parser.add_argument("--cores", type=int, default=num_cores(), help="that a run computes on")
    parser.add_argument("--seconds", type=float, default=0.5, help="that a turn of training lasts at least")
    parser.add_argument("--model", choices=list(points.MODELS), default="4M", help="of sampling and prefix")
    parser.add_argument("--prompts", nargs="+", type=int, default=PROMPTS, help="lengths of those of prefix")
    parser.add_argument("--smallest", action="store_true", help="one or two tiny points a part, to see whether it runs")
    parser.add_argument("--tables", action="store_true", help="measure nothing")
    parser.add_argument("--pictures", type=Path, help="folder to draw into, with the Chromium that is there")
    parser.add_argument("--to", type=Path, default=FILE, help="file of the results")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    return args


def measure(part: str, material: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One part, with models and rows made for it."""
    model = "0.5M" if args.smallest else args.model
    if part == "sampling":
        points.write_models(material, [model])
        series = {"prompt": [(1, 8, 2), (1, 16, 2)]} if args.smallest else sampling.SERIES
        return sampling.measure(material, model, series, 4 if args.smallest else 64, args.rounds)
    if part == "prefix":
        points.write_models(material, [model])
        sizes = ([16], 8, [1, 2]) if args.smallest else (args.prompts, COMPLETION, GROUPS)
        return prefix.measure(material, model, *sizes, args.rounds)
    some = [points.SMALLEST] if args.smallest else points.all_series(args.cores)[part]
    points.write_models(material, sorted({point.model for point in some}))
    for point in some:
        point.write_rows(material)
    return turns.measure(some, material, args.rounds, args.seconds)


def about(cores: int) -> dict[str, Any]:
    """Where it was measured."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_model(),
        "on_gpu": torch.cuda.is_available(),
        "cores": cores,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


if __name__ == "__main__":
    main()
