"""What can be known to be wrong with the rewards before torch is imported."""

import importlib.util
import logging
import os
import sys
from collections.abc import Iterable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from posttrain.checkpoints import sha256_of
from posttrain.config import suggestion
from posttrain.config.paths import check_model, check_score_head
from posttrain.config.rewards import RewardSourceFlags
from posttrain.errors import UserError
from posttrain.rollout.rewards.attempts import Here
from posttrain.rollout.rewards.functions import FUNCTIONS
from posttrain.rollout.rewards.pool import Lane
from posttrain.rollout.rewards.rubric import Rubric
from posttrain.rollout.rewards.sources import Source, answers_file, function_name, reward_sources

logger = logging.getLogger(__name__)

# Arguments that TRL hands to reward functions and posttrain does not.
NOT_PASSED = ("log_extra", "log_metric", "trainer_state")

# Files beside a model's that are of its training.
_WITHOUT_A_SAY = ("run.json", "manifest.json", "provenance.json", "trainer_state.json", "training_args.bin")

# The columns that each reward needs, by its name; of each group one.
Needs = dict[str, list[tuple[str, ...]]]


def check_rewards(config: RewardSourceFlags, columns: Iterable[str] | None = None) -> None:
    """Find every reward that is named: built in, in its file or module, on disk, at its address.

    Args:
        config: of the run.
        columns: of the data, where they are known.

    Raises:
        UserError: there is none, or it cannot be used; the message names the nearest thing that is there.
    """
    needs = required_columns(config)
    if columns is not None:
        check_columns(needs, columns, str(getattr(config, "dataset_name", None) or "datasets"))
    if config.judge_base_url is not None and any(source.kind == "judge" for source in reward_sources(config)):
        from posttrain.rollout.rewards.endpoint import check_endpoint  # brings a client for HTTP

        try:
            check_endpoint(config.judge_base_url)
        except UserError as error:
            if not answers_file(config).exists():
                raise
            logger.warning("%s (its earlier answers are kept here, and a run that is repeated needs no others)", error)


def required_columns(config: RewardSourceFlags) -> Needs:
    """The columns that the data must have beside the prompt; finds and imports the rewards, as check_rewards.

    Args:
        config: of the run.

    Returns:
        For each reward that needs any: groups of columns, of which it needs one each.

    Raises:
        UserError: as for check_rewards.
    """
    for problem in config.reward_problems():
        raise UserError(problem)
    sources = reward_sources(config)
    needs: Needs = {}
    for source in sources:
        if source.kind == "judge":
            needs[source.name] = [(column,) for column in Rubric(config.judge_rubric).columns]
        elif source.kind == "model":
            check_model("reward_model_name_or_path", source.target)
            check_score_head("reward_model_name_or_path", source.target)
        elif source.kind == "function" and source.target in FUNCTIONS:
            needs[source.name] = list(FUNCTIONS[source.target].needs)
    own = [source for source in sources if source.kind == "function" and source.target not in FUNCTIONS]
    return {name: groups for name, groups in (needs | _import(config, own)).items() if groups}


def check_columns(needs: Needs, columns: Iterable[str], where: str) -> None:
    """Check that the data has what the rewards need.

    Args:
        needs: from required_columns.
        columns: of the data.
        where: the data's name, for the message.

    Raises:
        UserError: a column is missing.
    """
    known = sorted(columns)
    for name, groups in needs.items():
        for group in groups:
            if not set(group) & set(known):
                if group[0] in NOT_PASSED:
                    raise UserError(
                        f"the reward {name} takes {group[0]!r}, which posttrain does not pass: give it a default "
                        f"({group[0]}=None), or take **kwargs in its place",
                        "rewards.md#your-own",
                    )
                near = "" if len(group) > 1 else suggestion(group[0], known)
                raise UserError(
                    f"{where}: the reward {name} needs the column {' or '.join(group)}, and the data has "
                    f"{', '.join(known)}; rename a column, or leave the reward out{near}",
                    "rewards.md",
                )


def reward_files(config: RewardSourceFlags) -> dict[str, dict[str, Any]]:
    """Size and sha256 of the local files that the rewards are made of, by path: own functions, models, the rubric.

    Args:
        config: of the run; its rewards can be used, by check_rewards.
    """
    files: list[Path] = []
    for source in reward_sources(config):
        if source.kind == "function" and source.target not in FUNCTIONS:
            module, _, _ = source.target.rpartition(":" if ":" in source.target else ".")
            files += [Path(module).expanduser()] if ":" in source.target else _source_of_module(module)
        elif source.kind in ("model", "classifier"):
            files += _files_of_model(Path(source.target).expanduser())
    if config.judge_rubric is not None:
        files.append(Path(config.judge_rubric).expanduser())
    files = list(dict.fromkeys(files))
    hashes = zip(files, sha256_of(files), strict=True)
    return {str(file): {"sha256": sha256, "size": file.stat().st_size} for file, sha256 in hashes}


def _files_of_model(folder: Path) -> list[Path]:
    """What a folder holds that may have a say in scores; none where it is not here but on the hub."""
    if not folder.is_dir():
        return []
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and not file.name.startswith(".")]
    return [file for file in files if file.suffix != ".md" and file.name not in _WITHOUT_A_SAY]


def _source_of_module(module: str) -> list[Path]:
    """The file that a module would be imported from, found without importing it or a package that it is in."""
    first, *rest = module.split(".")
    here = os.getcwd()  # where functions are looked for first
    spec = PathFinder.find_spec(first, sys.path if here in sys.path else [here, *sys.path])
    if spec is None:  # there are other ways to be found: some packages that are installed to be edited
        spec = importlib.util.find_spec(first)
    for part in rest:
        folders = None if spec is None else spec.submodule_search_locations
        spec = None if folders is None else PathFinder.find_spec(part, list(folders))
    return [] if spec is None or spec.origin is None or not spec.has_location else [Path(spec.origin)]


def _import(config: RewardSourceFlags, own: list[Source]) -> Needs:
    """What the user's own functions need; imports them where they will run, in a worker or here."""
    if not own:
        return {}
    home = Here(config.reward_timeout) if config.reward_workers == 0 else Lane(config.reward_timeout)
    try:
        return {source.name: [(column,) for column in home.load(function_name(config, source))] for source in own}
    finally:
        home.close()
