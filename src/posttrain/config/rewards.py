# ruff: noqa: RUF009 (flag() returns a dataclass field)
"""Where rewards come from: functions, models, judges, and what holds for all of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from posttrain.config.fields import flag

JUDGE = "judge:"
JUDGE_FLAGS = ("judge_base_url", "judge_rubric", "judge_parameters", "judge_concurrency", "judge_timeout")
OVERLONG = "get_soft_overlong_punishment"


@dataclass(kw_only=True)
class RewardSourceFlags:
    """Rewards"""

    reward_funcs: list[str] | None = flag(
        None, "Rewards: built-in names, package.module.function, path/to/file.py:function, judge:MODEL or TASK:MODEL."
    )
    reward_model_name_or_path: str | None = flag(
        None, "A sequence classifier or an adapter of one, TASK:MODEL (such as sentiment-analysis:ID) or judge:MODEL."
    )
    reward_model_revision: str = flag("main", "Branch, tag or commit of that model.")
    reward_model_dtype: str = flag(
        "auto", "Data type of its weights; auto: as stored.", choices=("auto", "bfloat16", "float16", "float32")
    )
    reward_weights: list[float] | None = flag(
        None, "Weight of each reward, the model's first, then those of reward_funcs; unset: 1 each."
    )
    soft_punish_cache: int | None = flag(
        None, f"Tokens before max_completion_length in which {OVERLONG} grows; unset: a fifth of it.", low=1
    )
    reward_workers: int | None = flag(
        None, "Processes that run reward functions; unset: one a function; 0: this one, without time limit.", low=0
    )
    reward_timeout: float = flag(60.0, "Seconds that one call of a reward function may take.", low=0.1)
    max_reward_failures: int = flag(
        10, "Errors, timeouts and bad values of rewards (each counts as no opinion) before training stops.", low=0
    )
    judge_base_url: str | None = flag(
        None, "OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1; its key: environment OPENAI_API_KEY."
    )
    judge_rubric: str | None = flag(
        None, "File with what to ask the judge, a Jinja template of prompt, completion and columns; unset: built in."
    )
    judge_parameters: dict[str, Any] = flag(
        {"temperature": 0, "max_tokens": 512}, "What else a request to the judge holds."
    )
    judge_concurrency: int = flag(8, "Requests to the judge at a time.", low=1)
    judge_timeout: float = flag(60.0, "Seconds until a request to the judge is given up and made again.", low=0.1)
    judge_retries: int = flag(5, "How often a request that failed is made again, after ever longer pauses.", low=0)

    def reward_sources(self) -> list[str]:
        """The rewards as the user named them, in the order of reward_weights: the model, then the functions."""
        return [*filter(None, [self.reward_model_name_or_path]), *(self.reward_funcs or [])]

    def reward_problems(self) -> Iterator[str]:
        """What is wrong between the flags of rewards, one message a mistake."""
        sources = self.reward_sources()
        if not sources:
            yield "no reward is named; give reward_funcs (such as accuracy_reward) or reward_model_name_or_path"
        twice = next((source for source in sources if sources.count(source) > 1), None)
        if twice is not None:
            yield f"the reward {twice} is named twice; name it once, and give it a weight with reward_weights"
        weights = self.reward_weights
        if weights is not None and len(weights) != len(sources):
            yield (
                f"reward_weights has {len(weights)} numbers for {len(sources)} rewards ({', '.join(sources)}); "
                "give one each, in this order"
            )
        length = getattr(self, "max_completion_length", None)
        if self.soft_punish_cache is not None and length is not None and self.soft_punish_cache >= length:
            yield (
                f"soft_punish_cache ({self.soft_punish_cache}) leaves no completion unpunished; give a number below "
                f"max_completion_length ({length})"
            )
        yield from self._judge_problems(sources)

    def _judge_problems(self, sources: list[str]) -> Iterator[str]:
        if any(source.startswith(JUDGE) for source in sources):
            if self.judge_base_url is None:
                yield "a judge needs judge_base_url, such as https://api.openai.com/v1 or http://127.0.0.1:8000/v1"
                return
            try:
                address = urlsplit(self.judge_base_url)
                is_address = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
            except ValueError:  # brackets that do not close, a port above 65535
                is_address = False
            if "@" in self.judge_base_url or "?" in self.judge_base_url:
                yield "judge_base_url holds more than an address; put the key into the environment, as OPENAI_API_KEY"
            elif not is_address or not self.judge_base_url.isprintable():
                yield f"judge_base_url {self.judge_base_url!r} is no address such as http://127.0.0.1:8000/v1"
            return
        unused = sorted({*JUDGE_FLAGS, "judge_retries"} & getattr(self, "explicit", frozenset()))
        if unused:
            yield f"{', '.join(unused)} without a judge would do nothing; add judge:MODEL to reward_funcs"
