"""Which run a folder belongs to: the same command finds its own checkpoints, another one is told what differs."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.checkpoints import (
    LATER,
    MANIFEST,
    PAGE,
    checkpoints,
    newest_whole,
    remove,
    set_aside,
    step_of,
    tidy,
    what_is_wrong,
)
from posttrain.disk import write_text
from posttrain.errors import UserError
from posttrain.packages import version_of
from posttrain.waiting import wait_for_all

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from posttrain.config import CommonConfig

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
PACKAGES = ("torch", "transformers", "accelerate", "peft", "datasets")
# Where results go, and what only watches a run: without a say in what is trained. Weights and rows have digests.
WITHOUT_A_SAY = (
    *("output_dir", "work_dir", "cache_dir", "metrics_file", "plots_file", "provenance_file", "record_steps"),
    *("report_to", "run_name", "disable_tqdm"),
    *("resume_from_checkpoint", "model_name_or_path", "dataset_name", "datasets", "save_total_limit"),
    *("max_nonfinite_steps", "ddp_timeout"),
    *("max_reward_failures", "reward_timeout", "judge_timeout", "judge_retries", "judge_concurrency"),
    *("vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout", "vllm_weights_dir"),
    *("vllm_gpu_memory_utilization", "vllm_enable_sleep_mode"),
    *("use_cpu",),  # set where there is no GPU; the kind of device counts by itself
    *("log_level", "log_level_replica", "logging_dir", "project", "dataloader_num_workers", "dataset_num_proc"),
    *("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision"),
)
# Of when a checkpoint is written, where that does not decide which one is the best.
WHEN_TO_SAVE = ("save_steps", "save_strategy")
# What the optimizer keeps in a checkpoint, whatever the flags say afterwards.
IN_THE_OPTIMIZER = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "optim")
_DIFFERENCES_SHOWN = 8
_NOT_TRAINED_WITH = ("experiment", "inspection", "planning")  # folders of this package


def what_it_depends_on(config: CommonConfig) -> dict[str, Any]:
    """All that a run's result depends on, as far as it is known before anything is loaded: plain data."""
    left_out = {*WITHOUT_A_SAY, *(() if config.load_best_model_at_end else WHEN_TO_SAVE)}
    flags = {name: value for name, value in config.to_mapping().items() if name not in left_out}
    packages = {name: version_of(name) for name in PACKAGES}
    about = {"method": type(config).__name__, "flags": flags, "packages": packages, "code": code_digest()}
    plain: dict[str, Any] = json.loads(json.dumps(about, sort_keys=True, default=str))
    return plain


def fingerprint(about: dict[str, Any]) -> str:
    """A name for all that a run depends on.

    Args:
        about: from `what_it_depends_on`, with what loading has added.
    """
    return digest_of(about)[:12]


def digest_of(about: Any) -> str:
    """sha256 of plain data."""
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()


def digest_of_files(files: dict[str, dict[str, Any]]) -> str:
    """sha256 over what a folder holds of a model: its weights and how they are used.

    Args:
        files: by name, their sha256; others count for nothing.
    """
    names = sorted(name for name in files if "/" not in name and name.endswith((".safetensors", "config.json")))
    return digest_of([(name, files[name]["sha256"]) for name in names])


@functools.cache
def code_files() -> dict[str, str]:
    """sha256 of each file of the code that trains, by its path in the package."""
    package = Path(__file__).parent
    names = (file.relative_to(package) for file in sorted(package.rglob("*.py")))
    return {
        name.as_posix(): hashlib.sha256((package / name).read_bytes()).hexdigest()
        for name in names
        if name.parts[0] not in _NOT_TRAINED_WITH
    }


@functools.cache
def code_digest() -> str:
    """sha256 over the code that trains."""
    lines = (f"{name} {sha256}\n" for name, sha256 in code_files().items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What two runs depend on and is not the same, in words; what only one of them knows is not compared.

    Args:
        before, now: from `what_it_depends_on`, with or without what loading adds.
    """
    found = []
    for kind in ("flags", "packages"):
        old, new = before.get(kind, {}), now.get(kind, {})
        names = sorted({*old, *new})
        found += [
            f"{name} {shown(old.get(name))} → {shown(new.get(name))}"
            for name in names
            if old.get(name) != new.get(name)
        ]
    words = {
        "method": "the method",
        "code": "posttrain's code",
        "rows": "the rows",
        "weights": "the weights it starts from",
        "rewards": "the rewards",
        "device": "the kind of device",
        "config": "config.json or generation_config.json of the model",
        "reference": "the reference model",
    }
    found = [
        *(text for name, text in words.items() if name in before and name in now and before[name] != now[name]),
        *found,
    ]
    if "processes" in before and "processes" in now and before["processes"] != now["processes"]:
        found.append(f"{before['processes']} → {now['processes']} processes")
    return found


def check_own(config: CommonConfig) -> None:
    """Looks whether output_dir belongs to another run; before anything is loaded.

    Raises:
        UserError: it does, and the user has not said what to do.
    """
    run = Path(config.output_dir or ".").expanduser()
    if config.work_dir is None and run.is_dir():
        _check_same(run, config, what_it_depends_on(config))


def settle(run: Path, config: CommonConfig, about: dict[str, Any], arguments: TrainingArguments) -> str | None:
    """Decides where a run goes on, and writes down whose folder it is; called by all processes.

    Args:
        run: the run's folder, which this run alone writes in.
        config: of the run.
        about: all that it depends on.
        arguments: of the run.

    Returns:
        The checkpoint to go on from; None: from the beginning.

    Raises:
        UserError: the folder belongs to another run, or there is no such checkpoint.
    """
    resume = config.resume_from_checkpoint
    is_first = arguments.process_index == 0
    is_first_on_disk = is_first or (arguments.save_on_each_node and arguments.local_process_index == 0)
    if resume is None:
        _check_same(run, config, about)
    elif is_first and resume is not False:
        _compare_with(Path(resume).parent if isinstance(resume, str) else run, about)
    if isinstance(resume, str):
        chosen: Path | None = Path(resume).expanduser()
        assert chosen is not None
        is_to_check = arguments.local_process_index == 0 and (chosen / MANIFEST).exists()
        wrong = what_is_wrong(chosen) if is_to_check else None
        if wrong is not None:
            raise UserError(f"--resume_from_checkpoint {resume} is damaged: {wrong}; take an earlier one", PAGE)
        if is_first_on_disk and chosen.resolve().parent == run.resolve():
            _set_later_aside(run, step_of(chosen))
    else:
        if resume is False and is_first_on_disk:
            _remove_all(run)
        chosen = _newest_of_all(run, arguments)
        if chosen is not None and arguments.save_only_model:
            if is_first:
                logger.warning("Checkpoints in %s hold models alone (--save_only_model): training starts anew.", run)
            chosen = None
        if chosen is None and resume is True:
            raise UserError(
                f"--resume_from_checkpoint: no whole checkpoint in {run} to go on from; leave the flag out",
                PAGE,
            )
    if is_first_on_disk:
        write_text(run / RUN_FILE, json.dumps({"fingerprint": fingerprint(about), **about}, indent=2) + "\n")
    if is_first and chosen is not None:
        logger.info("Going on from %s.", chosen)
    return None if chosen is None else str(chosen)


def _check_same(run: Path, config: CommonConfig, about: dict[str, Any]) -> None:
    if config.resume_from_checkpoint is not None:
        return
    found, is_finished = checkpoints(run), (run / MANIFEST).exists()
    if not found and not (is_finished and (run / RUN_FILE).exists()):
        return
    before = _read(run)
    if before is None:
        what, differing = f"holds {found[-1].name} of a run that is not known here", ["nothing tells its parameters"]
    else:
        what = "holds a finished run" if is_finished else f"holds an unfinished run, at {found[-1].name},"
        what += " with other parameters"
        differing = differences(before, about)
    if differing:
        is_same_method = before is None or before.get("method") == about["method"]
        can_go_on = found and is_same_method
        go_on = "--resume_from_checkpoint true goes on from its checkpoint with those of now, " if can_go_on else ""
        raise UserError(
            f"--output_dir {run} {what}: {_in_short(differing)}. Take another --output_dir; or {go_on}"
            "--resume_from_checkpoint false starts anew and replaces it",
            PAGE,
        )


def _compare_with(checkpoint_of: Path, about: dict[str, Any]) -> None:
    """Says what is not as it was when a checkpoint was written.

    Raises:
        UserError: it is one of another method.
    """
    before = _read(checkpoint_of)
    if before is None:
        return
    if before.get("method", about["method"]) != about["method"]:
        raise UserError(
            f"--resume_from_checkpoint: the checkpoints in {checkpoint_of} are of another method ("
            f"{before['method'].removesuffix('Config')}); to begin with their model: --model_name_or_path",
            PAGE,
        )
    differing = differences(before, about)
    if differing:
        logger.warning("Not as when %s was written: %s.", checkpoint_of, _in_short(differing))
    flags, now = before.get("flags", {}), about["flags"]
    kept = [name for name in IN_THE_OPTIMIZER if flags.get(name) != now.get(name)]
    if kept:
        logger.warning("The optimizer goes on with %s as it stands in the checkpoint.", ", ".join(kept))


def _read(run: Path) -> dict[str, Any] | None:
    try:
        about = json.loads((run / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return about if isinstance(about, dict) else None


def _remove_all(run: Path) -> None:
    found = checkpoints(run)
    for folder in found:
        remove(folder)
    if found:
        logger.warning("%s: %d checkpoint(s) of an earlier run are removed.", run, len(found))


def _set_later_aside(run: Path, step: int) -> None:
    """Checkpoints of the way that is left: found again, they would end another run than the one that goes on here."""
    later = [folder for folder in checkpoints(run) if step_of(folder) > step]
    for folder in later:
        set_aside(folder, LATER)
    if later:
        logger.warning("%s: %d later checkpoint(s) are kept as %s….", run, len(later), LATER)


def _newest_of_all(run: Path, arguments: TrainingArguments) -> Path | None:
    """The newest checkpoint that is whole on all machines, which may share a disk or not: the first process looks
    first and sets damaged ones aside."""

    step = -1
    for is_first_round in (True, False):
        if arguments.local_process_index == 0 and (arguments.process_index == 0) == is_first_round:
            tidy(run)
            found = newest_whole(run)
            step = -1 if found is None else step_of(found)
        wait_for_all("checkpoints that another one checks")
    if arguments.world_size > 1:
        newest = _of_machines(step, arguments)
        step = min(newest)
        is_there = max(newest) == step or (step >= 0 and what_is_wrong(run / f"checkpoint-{step}") is None)
        if not all(_of_machines(is_there, arguments)):
            have = ", ".join("none" if one < 0 else f"checkpoint-{one}" for one in newest)
            raise UserError(
                f"--output_dir {run}: the machines have no checkpoint in common, of which each needs its part; in the "
                f"order of their numbers the newest are: {have}. Put back what is missing, or start anew with "
                "--resume_from_checkpoint false",
                PAGE,
            )
    return None if step < 0 else run / f"checkpoint-{step}"


def _of_machines(value: Any, arguments: TrainingArguments) -> list[Any]:
    """A value of the first process of each machine."""
    import torch

    of_all: list[Any] = [None] * arguments.world_size
    torch.distributed.all_gather_object(of_all, value if arguments.local_process_index == 0 else None)
    return [one for one in of_all if one is not None]


def _in_short(differing: list[str]) -> str:
    more = len(differing) - _DIFFERENCES_SHOWN
    return "; ".join(differing[:_DIFFERENCES_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def shown(value: object) -> str:
    """A parameter's value in a message, cut short."""
    text = "unset" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
