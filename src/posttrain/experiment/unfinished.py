"""Whether an interrupted run of a stage lies there, that the stage would go on with."""

from __future__ import annotations

import json
from pathlib import Path

from posttrain.checkpoints import checkpoints, step_of
from posttrain.errors import UserError
from posttrain.experiment.params import stage_config
from posttrain.experiment.pipeline import Stage
from posttrain.runs import RUN_FILE, differences, what_it_depends_on


def unfinished(root: Path, stage: Stage) -> str | None:
    """The checkpoint that a stage would go on from, as far as can be known before anything is loaded.

    Args:
        root: the folder of dvc.yaml.
        stage: one whose data and models are as they were.
    """
    if not stage.trains(root) or not set(stage.params) <= {"params.yaml"}:
        return None
    try:
        config, _ = stage_config(stage.name, ["--params", str(root / "params.yaml")])
    except UserError:  # the stage itself will tell
        return None
    if config.work_dir is None:
        return None
    now = what_it_depends_on(config)
    for file in sorted((root / config.work_dir).glob(f"*/{RUN_FILE}")):
        found = checkpoints(file.parent)
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if found and not differences(before, now):
            step = step_of(found[-1])
            of_all = f" of {config.max_steps:,}" if config.max_steps and config.max_steps > 0 else ""
            return f"{found[-1].relative_to(root)} (step {step:,}{of_all})"
    return None
