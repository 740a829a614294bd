"""A language model as a judge, behind any endpoint that speaks OpenAI's chat completions.

The questions of a batch are asked at once, from a thread of their own, while other work goes on. An answer is asked for
again where the endpoint is busy, broken or slow, and kept on disk when it is there: the same question is never paid for
twice, and a run that is repeated gets the same rewards.
"""

import asyncio
import hashlib
import json
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain.errors import RunFailed, UserError
from posttrain.rollout.rewards.batch import Failure, RewardBatch, Scores
from posttrain.rollout.rewards.endpoint import Endpoint, JudgeError, NoAnswerError, ask, make_client, request_of, show
from posttrain.rollout.rewards.rubric import Rubric

# After so many questions in a row without an answer, or as many as are asked at a time, the rest is not asked.
MOST_LOST = 3


class AnswerCache:
    """Answers on disk, in a SQLite file that several processes may use at once.

    Args:
        path: of the file; made where it is missing.

    Raises:
        UserError: it cannot be opened, read or written, here or later.
        RunFailed: the disk is full.
    """

    def __init__(self, path: Path):
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--cache_dir: {path.parent} cannot be made: {error.strerror}") from error
        # Any thread, since it is opened in one and used in another; never by two at a time.
        self._connection = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
        self._run("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")

    def _run(self, statement: str, *values: str) -> list[Any]:
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            self._connection.close()
            if "disk is full" in str(error):
                raise RunFailed(f"the judge's answers cannot be kept in {self._path}: {error}") from error
            raise UserError(
                f"the judge's answers cannot be kept in {self._path}: {error}; delete the file, or set --cache_dir"
            ) from error

    def get(self, key: str) -> str | None:
        """The answer that is kept under a key, if there is one."""
        rows = self._run("SELECT answer FROM answers WHERE key = ?", key)
        return str(rows[0][0]) if rows else None

    def put(self, key: str, answer: str) -> str:
        """Keep an answer, unless another process was faster; returns the one that is kept."""
        self._run("INSERT OR IGNORE INTO answers VALUES (?, ?)", key, answer)
        kept = self.get(key)
        assert kept is not None
        return kept

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


class Judge:
    """A reward that asks a language model.

    Args:
        name: of the reward.
        endpoint: where it is.
        rubric: what it is asked.
        cache: a file for its answers.
    """

    def __init__(self, name: str, endpoint: Endpoint, rubric: Rubric, cache: Path):
        self.name = name
        self._endpoint, self._rubric = endpoint, rubric
        self._cache = AnswerCache(cache)
        self._client = make_client(endpoint.timeout)
        self._lost = 0  # questions in a row, of one batch, that got no answer
        self._turns = asyncio.Semaphore(endpoint.concurrency)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="posttrain-judge", daemon=True)
        self._thread.start()

    def submit(self, batch: RewardBatch) -> Callable[[], Scores]:
        """Begin to ask; returns what waits for the scores.

        Raises:
            UserError: the rubric fails on a row.
        """
        questions = self._rubric.render(batch)
        return asyncio.run_coroutine_threadsafe(self._score(questions), self._loop).result

    def close(self) -> None:
        """Give up what is still asked for, and end the thread."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._cache.close()

    async def _stop(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()

    async def _score(self, questions: list[str]) -> Scores:
        self._lost = 0
        different = list(dict.fromkeys(questions))  # equal completions are asked about once
        answers = await asyncio.gather(*map(self._answer, different), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, JudgeError):
                raise answer
        found = dict(zip(different, answers, strict=True))
        scores = Scores([])
        for row, question in enumerate(questions):
            answer = found[question]
            if isinstance(answer, BaseException):
                scores.values.append(None)
                scores.failures.append(Failure([row], str(answer)))
                continue
            value, reason = None, f"the judge's answer has no `Score: number`: {show(answer)}"
            try:
                value = self._rubric.read_score(answer)
            except ValueError as error:
                reason = f"the judge's score is no use: {error}"
            scores.values.append(value)
            if value is None:
                scores.failures.append(Failure([row], reason))
        return scores

    async def _answer(self, question: str) -> str:
        request = request_of(self._endpoint, question)
        key = hashlib.sha256(json.dumps([self._endpoint.url, request], sort_keys=True).encode()).hexdigest()
        kept = self._cache.get(key)
        if kept is not None:
            return kept
        async with self._turns:
            if self._lost >= max(self._endpoint.concurrency, MOST_LOST):
                raise JudgeError(f"not asked, after {self._lost} questions in a row without an answer")
            try:
                answer = await ask(self._client, self._endpoint, question)
            except NoAnswerError:
                self._lost += 1
                raise
            self._lost = 0
            return self._cache.put(key, answer)
