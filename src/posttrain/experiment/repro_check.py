"""`posttrain repro-check STAGE`: runs a stage twice, in two folders of their own, and says whether it gives the same:
to the bit, within a tolerance, or where the two part.

Each run has links to what the stage reads, a copy of params.yaml and a cache of its own, for tokens or log-probs of a
reference taken from a common one would hide a difference. Nothing in the repository is written to.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from posttrain.errors import UserError
from posttrain.experiment.command_words import Words
from posttrain.experiment.outs import compare_outs, md5_of
from posttrain.experiment.pipeline import Pipeline, Stage
from posttrain.experiment.steps import first_difference
from posttrain.terminal import say

USAGE = "posttrain repro-check STAGE [--params FILE] [--rtol X] [--atol X] [--keep] [--flag value ...]"
_DESCRIPTION = """Runs a stage of dvc.yaml twice (dpo, evaluate@sft) and compares all that it writes: bit-equal, equal
within tolerance, or diverged, with the first step and the first tensor that differ. Further flags are the stage's own:
`--max_steps 20` makes it short. Exit code 0: equal; 1: diverged."""
STEPS = "steps.jsonl"
_LINES_SHOWN = 15  # of a run that failed


def run(words: Sequence[str]) -> int:
    """Runs a stage twice and prints what came out.

    Args:
        words: behind `posttrain repro-check`.

    Returns:
        0 where both are equal, to the bit or within the tolerance; 1 where not.

    Raises:
        UserError: there is no such stage, what it reads is missing, or it failed.
    """
    parser = Words(USAGE, _DESCRIPTION)
    parser.add_argument("stage", metavar="STAGE", help="its name in dvc.yaml, an item of a matrix behind an @")
    parser.add_argument("--params", metavar="FILE", default="params.yaml", help="another params file [params.yaml]")
    parser.add_argument("--rtol", type=float, default=1e-4, metavar="X", help="relative tolerance of numbers [1e-4]")
    parser.add_argument("--atol", type=float, default=1e-6, metavar="X", help="absolute tolerance of numbers [1e-6]")
    parser.add_argument("--keep", action="store_true", help="keep both folders, whatever comes out")
    options, flags = parser.parse_known_args(list(words))
    params = Path(options.params).resolve()
    pipeline = Pipeline()
    stage = pipeline.stage(options.stage)
    _check(pipeline, stage, params, flags)
    home = Path(tempfile.mkdtemp(prefix=f"posttrain-repro-{stage.name.replace('@', '-')}-"))
    is_kept = options.keep
    try:
        folders = [home / "first", home / "second"]
        for number, folder in enumerate(folders, 1):
            began = time.monotonic()
            say(f"posttrain: {stage.name}, run {number} of 2 in {folder}")
            _run_in(folder, pipeline.root, stage, params, flags)
            say(f"posttrain: run {number} took {time.monotonic() - began:.0f} s")
        comparison = compare_outs(folders[0], folders[1], [*stage.outs, *stage.tracked], options.rtol, options.atol)
        difference = first_difference(folders[0] / STEPS, folders[1] / STEPS)
        if difference and comparison.word == "bit-equal":
            comparison.word = "diverged"  # on the way, and what was kept of it happens to be the same
        lines = [*([difference] if difference else []), *comparison.lines()]
        lines += _recorded(pipeline, stage, folders, params, flags)
        is_kept |= comparison.word == "diverged"
        print("\n".join([f"{stage.name}: {comparison.word}", *(f"  {line}" for line in lines)]))
        if is_kept:
            print(f"  both are in {home}")
        return int(comparison.word == "diverged")
    except UserError:
        is_kept = True
        raise
    finally:
        if not is_kept:
            shutil.rmtree(home, ignore_errors=True)


def _check(pipeline: Pipeline, stage: Stage, params: Path, flags: Sequence[str]) -> None:
    if not params.is_file():
        raise UserError(f"--params {params}: no such file")
    missing = [dep for dep in stage.deps if not (pipeline.root / dep).exists()]
    if missing:
        raise UserError(
            f"{stage.name} reads {', '.join(missing)}, which {'are' if len(missing) > 1 else 'is'} not here; "
            f"`dvc repro --downstream` or `dvc pull` brings {'them' if len(missing) > 1 else 'it'}"
        )
    if flags and not stage.trains(pipeline.root):
        raise UserError(f"{flags[0]}: the stage {stage.name} takes no flags; only stages that train do. usage: {USAGE}")
    if re.search(r"[|&;<>$`]", stage.command):  # DVC would ask a shell
        raise UserError(
            f"dvc.yaml: {stage.name}: cmd is more than one command ({stage.command}), which is not run here"
        )


def _run_in(folder: Path, root: Path, stage: Stage, params: Path, flags: Sequence[str]) -> None:
    folder.mkdir()
    within = tuple(f"{dep}/" for dep in stage.deps)
    for dep in stage.deps:
        if not dep.startswith(("src/", *within)):  # the package is imported from where it is
            (folder / dep).parent.mkdir(parents=True, exist_ok=True)
            (folder / dep).symlink_to((root / dep).resolve())
    for file in {"params.yaml", *stage.params}:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(params if file == "params.yaml" else root / file, folder / file)
    command = stage.command
    if stage.script is not None and (root / stage.script).is_file():
        command = command.replace(stage.script, shlex.quote(str((root / stage.script).resolve())), 1)
    if stage.trains(root):
        command += " " + shlex.join(["--record_steps", STEPS, *flags])
    environment = os.environ | {
        "POSTTRAIN_CACHE": str(folder / "cache"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "DVC_STAGE": stage.name,
        "DVC_ROOT": str(root),
    }
    with open(folder / "log", "w", encoding="utf-8") as log:
        done = subprocess.run(
            shlex.split(command),
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            check=False,
        )
    if done.returncode:
        text = (folder / "log").read_text(encoding="utf-8", errors="replace").splitlines()
        raise UserError(
            f"{stage.name} failed with exit code {done.returncode}; its last lines ({folder / 'log'}):\n"
            + "\n".join(text[-_LINES_SHOWN:])
        )


def _recorded(
    pipeline: Pipeline, stage: Stage, folders: Sequence[Path], params: Path, flags: Sequence[str]
) -> list[str]:
    """Whether the runs gave what dvc.lock has recorded of this stage."""
    lock = pipeline.lock.get(stage.name)
    if lock is None:
        return ["dvc.lock knows nothing of this stage, to compare with"]
    if flags or params != (pipeline.root / "params.yaml").resolve():
        return ["not compared with dvc.lock, which was made with other params"]
    deps, _, _ = pipeline.status(stage.name)
    moved = [key for key, _, _ in pipeline.changed_params(stage.name)]
    if deps or moved:
        return [f"not compared with dvc.lock: {[*moved, *deps][0]} has changed since; `posttrain status` tells all"]
    before = {out["path"]: out["md5"] for out in lock.get("outs", []) if "md5" in out}
    wanted = [path for path in stage.outs if path in before and not path.endswith("provenance.json")]
    other = [path for path in wanted if any(md5_of(folder / path) != before[path] for folder in folders)]
    if other:
        return [f"not what dvc.lock has recorded: {', '.join(other)}"]
    return [f"what dvc.lock has recorded, too: {', '.join(wanted)}"] if wanted else []
