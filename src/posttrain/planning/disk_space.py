"""What a run writes: checkpoints, the finished model, prepared rows, samples; and what DVC keeps of it."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.planning.batches import Steps
from posttrain.planning.lengths import Rows
from posttrain.planning.memory import optimizer_numbers
from posttrain.planning.report import DiskPlan
from posttrain.planning.shape import ModelShape

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from posttrain.config import CommonConfig

_BYTES_OF_A_TOKEN_AS_TEXT = 3.0  # of a completion in Parquet, compressed, its prompt and rewards included
_STATE = 2**16  # trainer_state.json, random states and the like of a checkpoint


def disk_plan(
    config: CommonConfig,
    arguments: TrainingArguments,
    shape: ModelShape,
    steps: Steps,
    rows: Rows,
    evaluation: Rows | None,
    completion: float,
) -> DiskPlan:
    """What is written.

    Args:
        config, arguments: of the run.
        shape: of the policy.
        steps: of the run.
        rows, evaluation: to train and evaluate on.
        completion: tokens of one.
    """
    model = float(shape.trained_bytes if config.use_peft else shape.weight_bytes)
    name = str(getattr(arguments.optim, "value", arguments.optim))
    state = 0.0 if arguments.save_only_model else optimizer_numbers(name) * shape.trained_bytes
    saves = num_saves(arguments, steps)
    limit = arguments.save_total_limit
    kept = saves if limit is None else min(saves, limit)
    at_a_time = kept + (saves > kept)  # the next is written before the oldest goes
    both = (rows, evaluation)
    cache = float(rows.bytes_on_disk + (evaluation.bytes_on_disk if evaluation else 0))
    if getattr(config, "precompute_ref_log_probs", False):
        cache += 4.0 * (rows.counts.get("targets", 0) + (evaluation.counts.get("targets", 0) if evaluation else 0))
    completions = 0.0
    if getattr(config, "log_completions", False):
        completions = _BYTES_OF_A_TOKEN_AS_TEXT * completion * steps.rows_in_step * steps.number
    where = Path(config.work_dir or config.output_dir).expanduser().absolute()
    there = next(folder for folder in (where, *where.parents) if folder.is_dir())
    return DiskPlan(
        model=model,
        checkpoint=model + state + _STATE if saves else 0.0,
        num_saves=saves,
        num_kept=at_a_time,
        cache=cache,
        completions=completions,
        dvc=model if is_output_of_stage(config.output_dir) else 0.0,
        free=float(shutil.disk_usage(there).free),
        preparing=sum(max(0.0, one.preparation.disk - one.bytes_on_disk) for one in both if one and one.preparation),
    )


def num_saves(arguments: TrainingArguments, steps: Steps) -> int:
    """How often a checkpoint is written."""
    strategy = str(getattr(arguments.save_strategy, "value", arguments.save_strategy))
    return times(strategy, arguments.save_steps, steps)


def num_evaluations(arguments: TrainingArguments, steps: Steps) -> int:
    """How often is evaluated: once at the end where nothing else is said."""
    strategy = str(getattr(arguments.eval_strategy, "value", arguments.eval_strategy))
    every = arguments.eval_steps or arguments.logging_steps
    found = times(strategy, every, steps)
    is_last = strategy == "steps" and found and steps.number % every_steps(every, steps.number) == 0
    return found + bool(arguments.eval_on_start) + (0 if is_last or strategy == "epoch" else 1)


def every_steps(given: float, number: int) -> int:
    """Steps between two of something; below 1 it is a share of all."""
    return max(1, int(given) if given >= 1 else math.ceil(number * given))


def times(strategy: str, every: float, steps: Steps) -> int:
    """How often something happens in a run: by steps, by epochs, or never."""
    if strategy == "steps":
        return steps.number // every_steps(every, steps.number)
    if strategy == "epoch":
        return math.ceil(steps.epochs or 1)
    return 1 if strategy == "best" else 0


def is_output_of_stage(folder: str, root: Path | None = None) -> bool:
    """Whether a folder is an output of a stage of dvc.yaml here: DVC then keeps a copy in its cache.

    Args:
        folder: of the finished model.
        root: of the repository; None: where the process runs.
    """
    import yaml

    from posttrain.config import load_yaml
    from posttrain.config.yaml_files import FastLoader

    here = (root or Path()).absolute()
    file = here / "dvc.yaml"
    if not file.is_file() or not (here / ".dvc").is_dir():
        return False
    params = load_yaml(here / "params.yaml") if (here / "params.yaml").is_file() else {}
    try:
        stages = yaml.load(file.read_text(encoding="utf-8"), FastLoader)["stages"].values()
    except (yaml.YAMLError, LookupError, TypeError, AttributeError):  # DVC tells what is wrong with it
        return False
    for stage in stages:
        for entry in stage.get("outs", []):
            path = str(next(iter(entry)) if isinstance(entry, dict) else entry)
            if (here / _filled_in(path, params)).absolute() == Path(folder).expanduser().absolute():
                return True
    return False


def _filled_in(path: str, params: Any) -> str:
    """A path of dvc.yaml with `${section.key}` put in."""
    for section, keys in params.items():
        for key, value in keys.items() if isinstance(keys, dict) else ():
            path = path.replace(f"${{{section}.{key}}}", str(value))
    return path
