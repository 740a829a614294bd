"""All rewards of a run: completions go in, a table of rewards comes out."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from posttrain.config.rewards import RewardSourceFlags
from posttrain.data.places import together
from posttrain.errors import RunFailed, UserError
from posttrain.rollout.rewards.attempts import Here
from posttrain.rollout.rewards.batch import Failure, RewardBatch, Scores
from posttrain.rollout.rewards.calls import FunctionName
from posttrain.rollout.rewards.functions import FUNCTIONS
from posttrain.rollout.rewards.pool import Lane
from posttrain.rollout.rewards.sources import Source, answers_file, function_name, reward_sources

logger = logging.getLogger(__name__)

_FAILURES_SHOWN, _PLACES_SHOWN = 5, 3
_GOES_ON = (
    "Checkpoints that the run has written are whole: the same command goes on from the last one; with a function that "
    "has been mended, add --resume_from_checkpoint true."
)
_LARGEST = float(np.finfo(np.float32).max)


class Reward(Protocol):
    """One reward, whatever is behind it."""

    name: str

    def submit(self, batch: RewardBatch) -> Callable[[], Scores]:
        """Begin to score, where that can be done beside other work; returns what waits for the scores."""

    def close(self) -> None:
        """Let go of processes, connections and weights."""


class FunctionReward:
    """A reward function, called in workers or here.

    Args:
        name: of the reward.
        function: how it is found.
        lanes: that a batch is spread over, in parts of one row after the other; of a function that has to see the batch
            as a whole, the one that it always runs in.
        row_by_row: call it with one row at a time.
    """

    def __init__(self, name: str, function: FunctionName, lanes: Sequence[Lane | Here], row_by_row: bool):
        assert row_by_row or len(lanes) == 1
        self.name, self._function, self._lanes, self._row_by_row = name, function, lanes, row_by_row
        for lane in lanes:
            lane.prepare(function)

    def submit(self, batch: RewardBatch) -> Callable[[], Scores]:
        """Hand the rows to the lanes."""
        bounds = [len(batch) * number // len(self._lanes) for number in range(len(self._lanes) + 1)]
        parts = []
        for lane, start, stop in zip(self._lanes, bounds[:-1], bounds[1:], strict=True):
            rows = {name: values[start:stop] for name, values in batch.arguments().items()}
            if stop > start:
                parts.append((start, lane.submit(self._function, rows, self._row_by_row)))

        def gather() -> Scores:
            scores = Scores([])
            for start, wait in parts:
                part = wait()
                scores.values += part.values
                scores.failures += [one.moved(start) for one in part.failures]
                scores.undecided += [one.moved(start) for one in part.undecided]
            return scores

        return gather

    def close(self) -> None:
        """Close the lanes, which other rewards may have closed already."""
        for lane in self._lanes:
            lane.close()


class Pending:
    """The rewards of a batch that is being scored."""

    def __init__(self, rewards: "Rewards", batch: RewardBatch, waits: Sequence[Callable[[], Scores]]):
        self._rewards, self._batch, self._waits = rewards, batch, waits
        self._table: np.ndarray | None = None

    def result(self) -> np.ndarray:
        """Wait for the rewards.

        Returns:
            (C, R) float32, in the order of the batch's rows and of the rewards' names; NaN = no opinion, or failed.

        Raises:
            UserError: a reward cannot be used at all, or has failed too often, from the first batch on.
            RunFailed: the same on the way.
        """
        if self._table is None:
            scores = self._rewards.settle(self._batch, self._waits)
            self._waits = ()
            columns = [[np.nan if value is None else value for value in one.values] for one in scores]
            self._table = np.array(columns, dtype=np.float32).reshape(len(scores), len(self._batch)).T
            self._rewards.note_silence(self._batch, self._table)
        return self._table


class Rewards:
    """The rewards of a run.

    Args:
        rewards: in the order of reward_weights.
        max_failures: how many failures are borne.

    Attributes:
        names: what the rewards are called in metrics; each once.
        num_failures: exceptions, timeouts and bad values so far, of this process of the run; a run that is resumed
            goes on counting.
        num_undecided: answers that could not be graded in time so far, in this process.
    """

    def __init__(self, rewards: Sequence[Reward], max_failures: int):
        self._rewards, self._max_failures = rewards, max_failures
        self.names = [reward.name for reward in rewards]
        self.num_failures = self.num_undecided = 0
        self._has_scored = False
        self._first_failures: dict[tuple[str, str], str] = {}  # by reward and reason
        self._has_been_silent = False

    @property
    def num_truncated(self) -> int:
        """Texts that were too long for a reward model so far, in this process."""
        return sum(getattr(reward, "num_truncated", 0) for reward in self._rewards)

    def state_dict(self) -> dict[str, Any]:
        """What a later process of this run needs, to bear no more failures than one process would."""
        return {"num_failures": self.num_failures, "has_scored": self._has_scored}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was called."""
        self.num_failures, self._has_scored = state["num_failures"], state["has_scored"]

    def submit(self, batch: RewardBatch) -> Pending:
        """Begin to score; functions and judges work beside what this process does, models at `result()`.

        Raises:
            UserError: the batch cannot be scored, such as by a rubric that fails on it, and none before it could.
            RunFailed: the same on the way.
        """
        with self._on_the_way():
            return Pending(self, batch, [reward.submit(batch) for reward in self._rewards])

    def close(self) -> None:
        """End processes and connections; what is still being scored is given up."""
        for reward in self._rewards:
            reward.close()

    def settle(self, batch: RewardBatch, waits: Sequence[Callable[[], Scores]]) -> list[Scores]:
        """Wait for the scores of a batch, count and tell what failed.

        Raises:
            UserError: a reward cannot be used, or failed too often, before any batch could be scored.
            RunFailed: the same after that: training was under way.
        """
        with self._on_the_way():
            scores = [_finite(wait()) for wait in waits]
            self._note_failures(batch, scores)
        self._has_scored = self._has_scored or any(value is not None for one in scores for value in one.values)
        return scores

    @contextlib.contextmanager
    def _on_the_way(self) -> Iterator[None]:
        """What shows after rewards have worked is told as the end of a run, and what could not work as a mistake."""
        try:
            yield
        except UserError as error:
            if self._has_scored:
                raise RunFailed(f"{error}\n{_GOES_ON}", error.page) from error
            raise

    def _note_failures(self, batch: RewardBatch, scores: Sequence[Scores]) -> None:
        for name, one in zip(self.names, scores, strict=True):
            for text in _told(name, batch, one.undecided).values():
                logger.warning("answer given up on, which counts as wrong: %s", text)
            self.num_undecided += len(one.undecided)
            self.num_failures += len(one.failures)
            for reason, text in _told(name, batch, one.failures).items():
                logger.warning("reward failed, which counts as no opinion: %s", text)
                if len(self._first_failures) < _FAILURES_SHOWN:
                    self._first_failures.setdefault((name, reason), text)
        if self.num_failures > self._max_failures and any(one.failures for one in scores):
            shown = "".join(f"\n  {text}" for text in self._first_failures.values())
            raise UserError(
                f"rewards failed {self.num_failures} times, more than --max_reward_failures {self._max_failures} "
                f"(counted are calls, which may each be for several completions); the first failures:{shown}\n"
                "Mend the reward (or give it longer with --reward_timeout), or bear more with --max_reward_failures.",
                "rewards.md#where-functions-run-and-what-happens-when-they-fail",
            )

    def note_silence(self, batch: RewardBatch, table: np.ndarray) -> None:
        """Tell, once, where no reward has an opinion: nothing is learnt from such a row."""
        silent = np.isnan(table).all(1)
        if silent.any() and not self._has_been_silent:
            self._has_been_silent = True
            first = batch.places[int(silent.argmax())]
            logger.warning(
                "no reward has an opinion on %d of %d completions (the first at %s): nothing is learnt from them",
                *(silent.sum(), len(batch), first),
            )


def _told(name: str, batch: RewardBatch, failures: Sequence[Failure]) -> dict[str, str]:
    """What is said of failures, by their reason: what fails on every row is said once."""
    rows_of: dict[str, list[int]] = {}
    for failure in failures:
        rows_of.setdefault(failure.reason, []).extend(failure.rows)
    texts = {}
    for reason, rows in rows_of.items():
        where = together((batch.places[row] for row in rows), _PLACES_SHOWN)
        texts[reason] = f"{name} at {where if len(rows) == 1 else f'{len(rows)} completions ({where})'}: {reason}"
    return texts


def _finite(scores: Scores) -> Scores:
    """The scores without those that float32 cannot hold, which are failures."""
    for row, value in enumerate(scores.values):
        if value is not None and not abs(value) <= _LARGEST:
            scores.values[row] = None
            scores.failures.append(Failure([row], f"it gave {value:g}, which is no usable number"))
    return scores


def build_rewards(config: RewardSourceFlags, device: Any) -> Rewards:
    """Make the rewards of a run ready.

    Args:
        config: of the run.
        device: for reward models.

    Raises:
        UserError: one of them cannot be used.
    """
    sources = reward_sources(config)
    functions = [source for source in sources if source.kind == "function"]
    num_lanes = len(functions) if config.reward_workers is None else config.reward_workers
    lanes: list[Lane | Here] = [Lane(config.reward_timeout) for _ in range(num_lanes)] if functions else []
    here = Here(config.reward_timeout)
    lanes = lanes or [here]
    rewards: list[Reward] = []
    try:
        for source in sources:
            if source.kind == "function":
                rewards.append(_function_reward(config, source, lanes, functions.index(source), here))
            elif source.kind == "judge":
                rewards.append(_judge(config, source))
            else:
                rewards.append(_model(config, source, device))
    except BaseException:
        for part in (*rewards, *lanes, here):
            part.close()
        raise
    return Rewards(rewards, config.max_reward_failures)


def _function_reward(
    config: RewardSourceFlags, source: Source, lanes: Sequence[Lane | Here], number: int, here: Here
) -> FunctionReward:
    function, built_in = function_name(config, source), FUNCTIONS.get(source.target)
    if built_in is None:
        return FunctionReward(source.name, function, [lanes[number % len(lanes)]], row_by_row=False)
    if built_in.is_heavy:
        return FunctionReward(source.name, function, lanes, row_by_row=True)
    return FunctionReward(source.name, function, [here], row_by_row=False)  # what is quick needs no process


def _judge(config: RewardSourceFlags, source: Source) -> Reward:
    from posttrain.rollout.rewards.endpoint import Endpoint
    from posttrain.rollout.rewards.judge import Judge
    from posttrain.rollout.rewards.rubric import Rubric

    assert config.judge_base_url is not None
    endpoint = Endpoint(
        config.judge_base_url,
        source.target,
        config.judge_parameters,
        config.judge_concurrency,
        config.judge_timeout,
        config.judge_retries,
    )
    return Judge(source.name, endpoint, Rubric(config.judge_rubric), answers_file(config))


def _model(config: RewardSourceFlags, source: Source, device: Any) -> Reward:
    from posttrain.rollout.rewards.models import ModelReward

    return ModelReward(source, config, device)
