"""What the user named as a reward: a function, a model, a classifier of a task, or a judge."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from posttrain.cache import cache_root
from posttrain.config import suggestion
from posttrain.config.rewards import JUDGE, OVERLONG, RewardSourceFlags
from posttrain.errors import UserError
from posttrain.rollout.rewards.calls import FunctionName
from posttrain.rollout.rewards.functions import FUNCTIONS

TASKS = ("sentiment-analysis", "text-classification")  # two words of transformers for one thing


@dataclass(frozen=True)
class Source:
    """A reward as the user named it.

    Args:
        kind: "function", "model", "classifier" or "judge".
        target: the function, model or judge without what names its kind.
        name: what its metrics are called.
    """

    kind: str
    target: str
    name: str


def reward_sources(config: RewardSourceFlags) -> list[Source]:
    """The rewards of a run, the model first; each has a name of its own.

    Raises:
        UserError: one of them is nothing that is known.
    """
    found = [_parse(text, "reward_funcs") for text in config.reward_funcs or []]
    if config.reward_model_name_or_path is not None:
        found.insert(0, _parse(config.reward_model_name_or_path, "reward_model_name_or_path"))
    names: list[str] = []
    for source in found:
        number = 2
        name = source.name
        while name in names:
            name, number = f"{source.name}_{number}", number + 1
        names.append(name)
    return [dataclasses.replace(source, name=name) for source, name in zip(found, names, strict=True)]


def function_name(config: RewardSourceFlags, source: Source) -> FunctionName:
    """How to find the function of a source, with its options from the flags."""
    if source.target != OVERLONG:
        return FunctionName(source.target)
    length: int = config.max_completion_length  # type: ignore[attr-defined]
    # A fifth, as in the paper (4096 of 20480).
    cache = config.soft_punish_cache or max(1, length // 5)
    return FunctionName(source.target, {"max_completion_len": length, "soft_punish_cache": cache})


def _parse(text: str, flag: str) -> Source:
    prefix, colon, rest = text.rpartition(":") if ".py:" in text else text.partition(":")
    if text in FUNCTIONS:
        return Source("function", text, FUNCTIONS[text].reward_name)
    if text.startswith(JUDGE) and rest:
        return Source("judge", rest, f"judge_{_last_part(rest)}")
    if prefix in TASKS and rest:
        return Source("classifier", rest, _last_part(rest))
    if flag == "reward_model_name_or_path":
        if colon and not Path(text).exists():
            raise UserError(f"{flag}: {prefix!r} is not one of {', '.join(TASKS)}, judge{suggestion(prefix, TASKS)}")
        return Source("model", text, _last_part(text))
    if prefix.endswith(".py") and rest:
        return _check_file(text, prefix, rest, flag)
    if colon:
        raise UserError(
            f"{flag}: {text} is neither path/to/file.py:function nor {' or '.join(f'{one}:MODEL' for one in TASKS)} "
            f"nor judge:MODEL{suggestion(prefix, [*TASKS, 'judge'])}",
            "rewards.md",
        )
    if "." not in text or "/" in text or text.endswith(".py"):
        raise UserError(
            f"{flag}: {text} is no built-in reward ({', '.join(FUNCTIONS)}); name your own as "
            f"package.module.function or path/to/file.py:function{suggestion(text, FUNCTIONS)}",
            "rewards.md",
        )
    return Source("function", text, text.rpartition(".")[2])


def answers_file(config: RewardSourceFlags) -> Path:
    """Where the answers of judges are kept."""
    return cache_root(getattr(config, "cache_dir", None)) / "judge.sqlite"


def _check_file(text: str, path: str, function: str, flag: str) -> Source:
    file = Path(path).expanduser()
    if not file.is_file():
        neighbours = [str(file.parent / other.name) for other in file.parent.glob("*.py")]
        raise UserError(f"{flag}: there is no file {path}{suggestion(str(file), neighbours)}")
    if not function.isidentifier():
        raise UserError(f"{flag}: {text}: {function!r} is no name of a function")
    return Source("function", text, function)


def _last_part(model: str) -> str:
    return model.rstrip("/").rpartition("/")[2]
