"""What can be known to be wrong with the rewards before torch is imported."""

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path

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


def reward_digests(config: RewardSourceFlags) -> list[str]:
    """Hashes of the local files that the rewards are made of: own functions, models, the rubric.

    Args:
        config: of the run.
    """
    named = [text.rpartition(":")[0] or text for text in config.reward_sources()] + config.reward_sources()
    digests = []
    for name in [*named, *filter(None, [config.judge_rubric])]:
        path = Path(name).expanduser()
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        digests += [hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()]
    return digests


def _import(config: RewardSourceFlags, own: list[Source]) -> Needs:
    """What the user's own functions need; imports them where they will run, in a worker or here."""
    if not own:
        return {}
    home = Here(config.reward_timeout) if config.reward_workers == 0 else Lane(config.reward_timeout)
    try:
        return {source.name: [(column,) for column in home.load(function_name(config, source))] for source in own}
    finally:
        home.close()
