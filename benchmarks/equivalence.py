"""Runs every method with the rows of a step cut in all ways: at once, accumulated, in two processes under DDP, FSDP and
ZeRO, and writes into docs/equivalence.md how far the results are apart.

    python benchmarks/equivalence.py

What has been run by the same code, flags and packages is not run again, so that it may be stopped and started. ZeRO is
left out where DeepSpeed is not installed, and whatever else has not been run yet, which the page then says. Exit code 1
where a run is missing, or is not equal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from equivalence_cases import CUTS, DDP, METHODS, OPTIONS, UNEQUAL, WHOLE, Case, Cut, can_run, words_of, write_material
from equivalence_compare import compare
from equivalence_page import Difference, write_page
from several_commands import launch
from tqdm import tqdm

from posttrain.runs import PACKAGES, code_digest

ROOT = Path(__file__).resolve().parent.parent
PARTS: dict[str, tuple[Sequence[Case], Sequence[Cut]]] = {
    "methods": (METHODS, CUTS),
    "options": (OPTIONS, (WHOLE, DDP)),
    "unequal": (UNEQUAL, (WHOLE, DDP)),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--folder", type=Path, default=ROOT / "work/equivalence", help="of the runs")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--cuts", nargs="+", choices=[cut.way for cut in CUTS if cut.way] + ["one"], help="of them")
    parser.add_argument("--no_runs", action="store_true", help="write the page from what there is")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/equivalence.md", help="where the tables go")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # which ends what it has started
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # models this small are as fast on one core
    folder = arguments.folder.resolve()
    if not (folder / "material/start/config.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        write_material(folder / "material")
    todo = [
        (part, cut)
        for part in arguments.parts
        for cut in PARTS[part][1]
        if can_run(cut) and not arguments.no_runs and (arguments.cuts is None or (cut.way or "one") in arguments.cuts)
    ]
    for part, cut in tqdm(todo, unit="start", disable=not sys.stderr.isatty()):
        run(PARTS[part][0], cut, folder)
    missing = [
        f"{cut.title}: {case.method} {case.title}"
        for cases, cuts in PARTS.values()
        for cut in filter(can_run, cuts)
        for case in cases
        if not is_done(case, cut, folder)
    ]
    found = {part: list(differences(part, folder)) for part in PARTS}
    write_page(arguments.page, found, {part: len(cases) * (len(cuts) - 1) for part, (cases, cuts) in PARTS.items()})
    if missing:
        print(f"{len(missing)} runs are missing; the first: {missing[0]}")
    unequal = [one for part in ("methods", "options") for one in found[part] if not one.apart.is_equal]
    for one in unequal:
        print(f"not equal: {one.cut.title}, {one.case.method} {one.case.title}")
    return int(bool(unequal or missing))


def differences(part: str, folder: Path) -> Iterator[Difference]:
    """How far each run of a part, of those that there are, is from the one with the whole step at once."""
    cases, cuts = PARTS[part]
    for case in cases:
        for cut in filter(can_run, cuts[1:]):
            if not (is_done(case, WHOLE, folder) and is_done(case, cut, folder)):
                continue
            places = (place_of(case, one, folder) for one in (WHOLE, cut))
            yield Difference(case, cut, compare(*places, folder / "material/start"))


def run(cases: Sequence[Case], cut: Cut, folder: Path) -> None:
    """Runs what has not been run yet of one cut, in one start."""
    commands = []
    for case in cases:
        if not is_done(case, cut, folder):
            out = place_of(case, cut, folder)
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            (out / "made_by").write_text(made_by(case, cut, folder), encoding="utf-8")
            commands.append(words_of(case, cut, folder / "material", out))
    if commands:
        launch(commands, place_of(cases[0], cut, folder).parent, cut.way)


def place_of(case: Case, cut: Cut, folder: Path) -> Path:
    """The folder of a run: model/, steps.jsonl, and what made it."""
    name = hashlib.sha256(f"{case.flags} {case.steps}".encode()).hexdigest()[:12]
    return folder / (cut.way or f"one-{cut.rows}") / f"{case.method}-{name}"


def is_done(case: Case, cut: Cut, folder: Path) -> bool:
    """Whether a run has ended that the code of now made."""
    out = place_of(case, cut, folder)
    made = out / "made_by"
    is_current = made.is_file() and made.read_text(encoding="utf-8") == made_by(case, cut, folder)
    return is_current and (out / "model/trainer_state.json").is_file()


def made_by(case: Case, cut: Cut, folder: Path) -> str:
    """What a run depends on, but for the material."""
    words = words_of(case, cut, folder / "material", place_of(case, cut, folder))
    return json.dumps({"code": code_digest(), "packages": [version(name) for name in PACKAGES], "words": words})


if __name__ == "__main__":
    sys.exit(main())
