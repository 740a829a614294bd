"""A language model as a judge, behind any endpoint that speaks OpenAI's chat completions.

The questions of a batch are asked at once, from a thread of their own, while other work goes on. An answer is asked for
again where the endpoint is busy, broken or slow, and kept on disk when it is there: the same question is never paid for
twice, and a run that is repeated gets the same rewards.
"""

import asyncio
import hashlib
import json
import os
import random
import sqlite3
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from posttrain.errors import UserError
from posttrain.rollout.rewards.batch import Failure, RewardBatch, Scores
from posttrain.rollout.rewards.rubric import Rubric, read_score

KEY_VARIABLE = "OPENAI_API_KEY"
# Seconds before the first retry; each pause is twice the one before, up to the longest, give or take a half.
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
_TRY_AGAIN = {408, 409, 425, 429}
_NEVER = {401: "the key is not accepted", 403: "access is denied", 404: "there is no such endpoint or model"}


class JudgeError(Exception):
    """One question has no answer. The message says why."""


@dataclass(frozen=True)
class Endpoint:
    """Where and how to ask.

    Args:
        base_url: such as http://127.0.0.1:8000/v1.
        model: its name there.
        parameters: further fields of a request.
        concurrency: requests at a time.
        timeout: seconds for one request.
        retries: further attempts after the first.
    """

    base_url: str
    model: str
    parameters: Mapping[str, Any]
    concurrency: int
    timeout: float
    retries: int

    @property
    def url(self) -> str:
        return self.base_url.rstrip("/") + "/chat/completions"


class AnswerCache:
    """Answers on disk, in a SQLite file that several processes may use at once.

    Args:
        path: of the file; made where it is missing.

    Raises:
        UserError: it cannot be opened, read or written, here or later.
    """

    def __init__(self, path: Path):
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        # Any thread, since it is opened in one and used in another; never by two at a time.
        self._connection = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
        self._run("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")

    def _run(self, statement: str, *values: str) -> list[Any]:
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            self._connection.close()
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
        self._key = os.environ.get(KEY_VARIABLE, "")
        self._turns = asyncio.Semaphore(endpoint.concurrency)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="posttrain-judge", daemon=True)
        self._thread.start()
        self._client = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {}, timeout=endpoint.timeout
        )

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
            value = read_score(answer)
            scores.values.append(value)
            if value is None:
                scores.failures.append(
                    Failure([row], f"the judge's answer has no `Score: number`: {self._show(answer)}")
                )
        return scores

    async def _answer(self, question: str) -> str:
        request = {
            "model": self._endpoint.model,
            "messages": [{"role": "user", "content": question}],
            **self._endpoint.parameters,
        }
        key = hashlib.sha256(json.dumps([self._endpoint.url, request], sort_keys=True).encode()).hexdigest()
        kept = self._cache.get(key)
        if kept is not None:
            return kept
        async with self._turns:
            return self._cache.put(key, await self._ask(request))

    async def _ask(self, request: Mapping[str, Any]) -> str:
        """The answer to a request, which is made again after pauses as long as that may help."""
        reason, wait = "", 0.0
        for attempt in range(self._endpoint.retries + 1):
            if attempt:
                pause = min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE)
                await asyncio.sleep(max(min(wait, LONGEST_PAUSE), pause * random.uniform(0.5, 1.5)))
            wait = 0.0
            try:
                # httpx2's own limit is for each piece of an answer; this one is for the whole.
                async with asyncio.timeout(self._endpoint.timeout):
                    response = await self._client.post(self._endpoint.url, json=request)
            except TimeoutError:
                reason = f"no answer within {self._endpoint.timeout:g} s"
                continue
            except httpx2.TransportError as error:
                reason = f"{type(error).__name__} {error}".strip()
                continue
            said = f"HTTP {response.status_code} {self._show(response.text)}"
            if response.status_code in _NEVER:
                raise UserError(
                    f"judge {self._endpoint.url}: {_NEVER[response.status_code]} ({said})", "rewards.md#judges"
                )
            if response.status_code in _TRY_AGAIN or response.status_code >= 500:
                reason, wait = said, _seconds(response.headers.get("retry-after", ""))
                continue
            if not response.is_success:
                raise JudgeError(f"the judge refuses the question: {said}")
            answer = _content(response)
            if answer is not None:
                return answer
            reason = f"no chat completion: {self._show(response.text)}"
        raise JudgeError(f"the judge gives no answer ({self._endpoint.retries + 1} attempts): {reason}")

    def _show(self, text: str) -> str:
        """The beginning of a text from outside, in one line and without the key."""
        text = " ".join(text.split())
        if self._key:
            text = text.replace(self._key, "[key]")
        return repr(text if len(text) <= 200 else text[:197] + "...")


def _content(response: httpx2.Response) -> str | None:
    """The text of a chat completion; None where the response is none."""
    try:
        content = response.json()["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return None
    return content if isinstance(content, str) else "" if content is None else None


def _seconds(text: str) -> float:
    try:
        return max(0.0, float(text))
    except ValueError:
        return 0.0  # a date, or nothing
