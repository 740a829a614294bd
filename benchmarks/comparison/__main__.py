"""Measures whole training steps of posttrain and of its peer, trl, on the same rows, models and flags:

    .venv/bin/python -m benchmarks.comparison --data FOLDER [--methods sft dpo …] [--all] [--seconds 500]

The peer lives in an environment of its own (.venv-peer, made on the first run). Both are alive at once and take their
steps in turn. Each cell is stored as soon as it is measured, in benchmarks/comparison/results.json; a second call
measures what is missing, or was measured with other code, versions, flags or on another machine. What is stored becomes
docs/speed.md, and its main rows a table of README.md and docs/from_trl.md.

--check measures a few cells and compares their ratios with those of baselines.json: exit code 1, and a table, where one
got worse by more than its tolerance.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm import tqdm

from benchmarks.comparison import cells, measuring, tables
from benchmarks.comparison.cells import Cell, chosen, write_material
from benchmarks.comparison.floors import measure_rates
from benchmarks.comparison.largest import on_a_card
from benchmarks.comparison.picture import picture
from benchmarks.comparison.ratios import BASELINES, baselines_of, read_baselines, verdicts
from benchmarks.in_turn import ROOT, RunEnded
from posttrain.machine import num_cores

FILE = Path(__file__).with_name("results.json")
PAGE = ROOT / "docs/speed.md"
SHORT = (ROOT / "README.md", ROOT / "docs/from_trl.md")  # pages that show the main rows
CHECKED = (*chosen(["sft", "reward", "dpo", "grpo"], ["full"], ["float32"], None, ["4M"]),)
CHECKED += (*chosen(["sft"], ["lora"], ["bf16"], None, ["4M"]),)


def main() -> int:
    args = parse_arguments()
    if args.tables:
        write(json.loads(args.to.read_text(encoding="utf-8")), args)
        return 0
    peer = find_peer(args)
    torch.set_num_threads(args.cores)
    transformers.utils.logging.disable_progress_bar()
    # What was there before stays for --check, which stores nothing.
    results = {"cells": {}} if args.check or not args.to.is_file() else json.loads(args.to.read_text(encoding="utf-8"))
    failed = fill(results, list(CHECKED) if args.check else selected(args), peer, args)
    for name, why in failed.items():
        print(f"{name} failed:\n{why}", file=sys.stderr)
    if args.check:
        return report_check(results)
    if args.card:
        results["card"] = on_a_card()
    store(results, args.to)
    if results["cells"]:
        write(results, args)
    return 1 if failed else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(cells.FILES)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("POSTTRAIN_DATA"), help=f"folder of {names}; unset: $POSTTRAIN_DATA"
    )
    for flag, values in (
        ("methods", cells.METHODS),
        ("tunings", cells.TUNINGS),
        ("precisions", cells.PRECISIONS),
        ("data_sets", cells.DATA_SETS),
        ("sizes", cells.SIZES),
    ):
        parser.add_argument(f"--{flag}", nargs="+", choices=values, help="unset: those of the default set")
    parser.add_argument("--all", action="store_true", help="unset flags stand for everything")
    parser.add_argument(
        "--again", action="store_true", help="forget what is stored of these cells, and measure them anew"
    )
    parser.add_argument("--steps", type=int, help=f"of each side that are counted; unset: {measuring.STEPS}")
    parser.add_argument("--starts", type=int, default=1, help="of each side; unset: 1; more take 20 s a pair and cell")
    parser.add_argument("--cores", type=int, default=num_cores(), help="that each side computes on; unset: all")
    parser.add_argument("--seconds", type=float, help="begin no other cell after so long; the next call goes on")
    parser.add_argument(
        "--check", action="store_true", help="measure a few cells against baselines.json, store nothing"
    )
    parser.add_argument("--keep", action="store_true", help="make what is stored the baselines")
    parser.add_argument("--card", action="store_true", help="plan what a card of 24 GB has room for")
    parser.add_argument("--tables", action="store_true", help="measure nothing")
    parser.add_argument("--peer_python", type=Path, default=measuring.PEER, help="of an environment with trl")
    parser.add_argument("--to", type=Path, default=FILE, help="file of the results")
    parser.add_argument("--page", type=Path, help="file of the tables; unset: docs/speed.md, with --to beside that")
    args = parser.parse_args()
    if args.page is None:
        args.page = PAGE if args.to == FILE else args.to.with_suffix(".md")
    if not args.tables:
        if args.data is None or not all((args.data / name).is_file() for name in cells.FILES):
            parser.error(f"--data or POSTTRAIN_DATA must name a folder with {names}; given: {args.data}")
        if args.steps is not None and args.steps < 1:
            parser.error("--steps must be at least 1")
        if args.starts < 1:
            parser.error("--starts must be at least 1")
    return args


def selected(args: argparse.Namespace) -> list[Cell]:
    """The cells that flags ask for."""
    return chosen(args.methods, args.tunings, args.precisions, args.data_sets, args.sizes, args.all)


def find_peer(args: argparse.Namespace) -> Path:
    """The peer's interpreter; its environment is made where there is none, but not to check."""
    python: Path = args.peer_python.absolute()
    if not python.exists():
        if args.check or args.peer_python != measuring.PEER:
            sys.exit(
                f"posttrain: {args.peer_python} is not there, and without trl nothing can be compared; `make bench` "
                "makes .venv-peer"
            )
        measuring.make_peer()
    return python


def fill(results: dict[str, Any], wanted: list[Cell], peer: Path, args: argparse.Namespace) -> dict[str, str]:
    """Measures what is missing, and stores it cell by cell.

    Returns:
        The cells that failed, and why.
    """
    began = time.monotonic()
    where = measuring.about(peer, args.cores)
    if results.get("about") != where:
        results |= {"about": where, "cells": {}, "rates": {}, "import": {}}
    keys = {cell.name: measuring.key_of(cell, where) for cell in wanted}
    if args.again:
        for cell in wanted:
            results["cells"].pop(cell.name, None)
    missing = [cell for cell in wanted if results["cells"].get(cell.name, {}).get("key") != keys[cell.name]]
    if not missing:
        return {}
    failed = {}
    with tempfile.TemporaryDirectory(prefix="posttrain-bench-") as temporary:
        write_material(Path(temporary), args.data, sorted({cell.size for cell in missing}))
        for cell in (bar := tqdm(missing, unit="cell")):
            if args.seconds and time.monotonic() - began > args.seconds:
                tqdm.write(f"posttrain: {len(missing) - bar.n} cells are left; the same command goes on")
                break
            bar.set_description(cell.name)
            # Of what floors are made of, the best that has been seen on this machine.
            keep(results["rates"], measure_rates(), max)
            keep(results["import"], measuring.import_seconds(), min)
            steps = args.steps or measuring.STEPS[cell.size]
            try:
                record = measuring.measure(cell, Path(temporary), peer, args.cores, steps, args.starts)
            except RunEnded as error:
                failed[cell.name] = str(error)
                continue
            results["cells"][cell.name] = record | {"key": keys[cell.name], "code": measuring.code()}
            if not args.check:
                store(results, args.to)
    return failed


def keep(kept: dict[str, float], seen: dict[str, float], better: Callable[..., float]) -> None:
    """Puts what was seen beside what is kept, of each the better one."""
    kept |= {name: better(value, kept.get(name, value)) for name, value in seen.items()}


def store(results: dict[str, Any], file: Path) -> None:
    """Writes a whole file, or none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}")
    beside.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    beside.replace(file)


def write(results: dict[str, Any], args: argparse.Namespace) -> None:
    """The page, to its file and to the terminal, and its picture; and baselines, where they are asked for."""
    text = tables.page(results)
    drawn = args.page.parent / tables.PICTURE
    drawn.parent.mkdir(parents=True, exist_ok=True)
    args.page.write_text(text, encoding="utf-8")
    drawn.write_text(picture(results), encoding="utf-8")
    if args.page == PAGE:
        for place in SHORT:
            shown = tables.with_rows(place.read_text(encoding="utf-8"), tables.main_rows(results))
            place.write_text(shown, encoding="utf-8")
    print(text)
    if args.keep:
        BASELINES.write_text(json.dumps(baselines_of(results), indent=1) + "\n", encoding="utf-8")


def report_check(results: dict[str, Any]) -> int:
    """Prints ratios beside their baselines; 1 where one got worse, or could not be measured."""
    baselines = read_baselines()
    found = verdicts(results["cells"], baselines)
    print(tables.verdict_table(found))
    others = {name: kept for name, kept in baselines["about"].items() if results["about"].get(name) != kept}
    if others:
        print(f"The baselines were measured elsewhere: {', '.join(f'{name} {kept}' for name, kept in others.items())}.")
    unmeasured = [cell.name for cell in CHECKED if cell.name not in results["cells"]]
    if unmeasured:
        print(f"not measured: {', '.join(unmeasured)}")
    return 1 if unmeasured or any(one.is_worse for one in found) else 0


if __name__ == "__main__":
    sys.exit(main())
