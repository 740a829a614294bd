"""`make tensorboard`: the runs of all stages under names that a person can read.

Training writes to work/<stage>/<fingerprint>/runs/<time and host>. TensorBoard is shown a folder of links to those,
named after the stage and the flags in which its runs differ. It does not walk through checkpoints then, either.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posttrain.runs import RUN_FILE, WITHOUT_A_SAY

EVERY = 15.0  # seconds between two looks for new runs
SAMPLES = "text=200"  # texts of a kind that are shown; TensorBoard itself shows 10
_LONGEST = 80  # letters of a name
# Beginnings of flags that tell how a run is watched; they stand last.
_WATCHING = ("eval", "log", "num_completions_to_print", "per_device_eval", "do_eval", "dataset_test_split")


def link_runs(work: Path, view: Path) -> list[str]:
    """Brings a folder of links up to date.

    Args:
        work: where stages keep their runs.
        view: the folder of links, which is nothing but that.

    Returns:
        the names of the runs.
    """
    wanted = dict(_named(work))
    found = {str(path.relative_to(view)): path for path in view.glob("*/*") if path.is_symlink()}
    for name, path in found.items():
        if name not in wanted or path.resolve() != wanted[name].resolve():
            path.unlink()
    for name, folder in wanted.items():
        path = view / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_symlink():
            path.symlink_to(folder.resolve(), target_is_directory=True)
    return sorted(wanted)


def _named(work: Path) -> Iterator[tuple[str, Path]]:
    """Name and folder of each run that has event files."""
    for stage in sorted(path for path in work.glob("*") if path.is_dir()):
        runs = {folder: _about(folder) for folder in sorted(stage.iterdir()) if (folder / "runs").is_dir()}
        differing = _differing(list(runs.values()))
        for folder, about in runs.items():
            told = " ".join(f"{name}={_short(about[name])}" for name in differing if about.get(name) is not None)
            words = [textwrap.shorten(told, _LONGEST, placeholder=" …"), folder.name[:6]]
            name = f"{stage.name}/{' '.join(filter(None, words))}"
            starts = sorted(path for path in (folder / "runs").iterdir() if any(path.glob("events.out.tfevents.*")))
            for number, start in enumerate(starts):
                yield name + (f" ({number + 1})" if number else ""), start


def _about(folder: Path) -> dict[str, Any]:
    """The flags of a run, as it has written them down; none where it has not."""
    try:
        flags = json.loads((folder / RUN_FILE).read_text(encoding="utf-8")).get("flags", {})
    except (OSError, ValueError):
        return {}
    return {name: value for name, value in flags.items() if name not in WITHOUT_A_SAY}


def _differing(runs: list[dict[str, Any]]) -> list[str]:
    names = sorted({name for flags in runs for name in flags}, key=lambda name: (name.startswith(_WATCHING), name))
    return [name for name in names if len({json.dumps(flags.get(name), sort_keys=True) for flags in runs if flags}) > 1]


def _short(value: Any) -> str:
    text = format(value, "g") if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    return text.replace(os.sep, "|")[:24]


def main() -> int:
    """Show the runs until TensorBoard ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="where stages keep their runs")
    parser.add_argument("--port", type=int, default=6006)
    options = parser.parse_args()
    view = Path(".dvc/tmp/tensorboard") if Path(".dvc").is_dir() else options.work / ".tensorboard"
    shutil.rmtree(view, ignore_errors=True)
    view.mkdir(parents=True)
    names = link_runs(options.work, view)
    print(
        f"{len(names)} runs{': ' + ', '.join(names[:8]) if names else '; `make pipeline` makes some'}", file=sys.stderr
    )
    words = ["--logdir", str(view), "--host", "127.0.0.1", "--port", str(options.port), "--samples_per_plugin", SAMPLES]
    with subprocess.Popen([sys.executable, "-m", "tensorboard.main", *words]) as server:
        try:
            while True:
                try:
                    return server.wait(EVERY)
                except subprocess.TimeoutExpired:
                    link_runs(options.work, view)
        except KeyboardInterrupt:
            server.terminate()
            return 130


if __name__ == "__main__":
    sys.exit(main())
