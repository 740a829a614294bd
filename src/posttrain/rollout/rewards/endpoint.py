"""Questions to an endpoint that speaks OpenAI's chat completions. What comes back is not trusted: it is bounded in time
and size, taken as data alone, and shown without the key."""

import asyncio
import json
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from posttrain.errors import UserError

KEY_VARIABLE = "OPENAI_API_KEY"
PAGE = "rewards.md#judges"
# Seconds before the first retry; each pause is twice the one before, up to the longest, give or take a half.
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
# Bytes of an answer, far above what a judge has to say. More is not read.
LARGEST_ANSWER = 1 << 20
# Seconds that the check of an address before training may take.
CHECK_SECONDS = 10.0
_TRY_AGAIN = {408, 409, 425, 429}
_NEVER = {
    301: "it redirects; give the address that it names",
    302: "it redirects; give the address that it names",
    303: "it redirects; give the address that it names",
    307: "it redirects; give the address that it names",
    308: "it redirects; give the address that it names",
    401: "the key is not accepted",
    403: "access is denied",
    404: "there is no such endpoint or model",
}


class JudgeError(Exception):
    """One question has no answer. The message says why."""


class NoAnswerError(JudgeError):
    """The endpoint itself is lost, whatever the question."""


class _BadAnswerError(Exception):
    """What came is no answer; another attempt may bring one."""


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


def check_endpoint(base_url: str) -> None:
    """Find out, before anything heavy is loaded, whether anybody answers at an address; what they say does not matter.

    Args:
        base_url: of the judge.

    Raises:
        UserError: nobody does, or the key in the environment cannot be sent.
    """

    async def try_it() -> None:
        client = make_client(CHECK_SECONDS)
        async with asyncio.timeout(CHECK_SECONDS), client, client.stream("GET", base_url):
            pass

    try:
        asyncio.run(try_it())
    except TimeoutError:
        return  # a server that is busy; each question has a limit of its own
    except (httpx2.ConnectError, httpx2.InvalidURL, httpx2.UnsupportedProtocol, httpx2.ProxyError) as error:
        raise UserError(
            f"judge_base_url {base_url} cannot be reached: {show(f'{type(error).__name__} {error}')}; start the judge "
            "first, or correct the address",
            PAGE,
        ) from error
    except httpx2.RequestError:
        return  # somebody is there, who may answer another question better


def make_client(timeout: float) -> httpx2.AsyncClient:
    """A client that sends the key of the environment, and that follows nobody elsewhere with it.

    Raises:
        UserError: the key, or a proxy of the environment, cannot be used.
    """
    key = _key()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"{KEY_VARIABLE} holds characters that no key has (blanks, line breaks); copy it again", PAGE)
    # No compression: a small answer could grow to any size.
    headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})
    try:
        return httpx2.AsyncClient(headers=headers, timeout=timeout, follow_redirects=False)
    except Exception:  # the error would show the proxy's address, with the password in it
        raise UserError(
            "HTTP_PROXY, HTTPS_PROXY or ALL_PROXY is no address that can be used for the judge; mend or unset it", PAGE
        ) from None


async def ask(client: httpx2.AsyncClient, endpoint: Endpoint, question: str) -> str:
    """The answer to a question, which is asked again after pauses as long as that may help.

    Args:
        client: from make_client.
        endpoint: where.
        question: the text.

    Raises:
        JudgeError: there is no answer to this one; NoAnswerError after all attempts.
        UserError: there can never be one.
    """
    request = request_of(endpoint, question)
    reason, wait = "", 0.0
    for attempt in range(endpoint.retries + 1):
        if attempt:
            pause = min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE)
            await asyncio.sleep(max(min(wait, LONGEST_PAUSE), pause * random.uniform(0.5, 1.5)))
        wait = 0.0
        try:
            # httpx2's own limit is for each piece of an answer; this one is for the whole.
            async with asyncio.timeout(endpoint.timeout):
                status, headers, body = await _post(client, endpoint.url, request)
        except TimeoutError:
            reason = f"no answer within {endpoint.timeout:g} s"
            continue
        except httpx2.RequestError as error:
            reason = show(f"{type(error).__name__} {error}".strip())
            continue
        except _BadAnswerError as error:
            reason = str(error)
            continue
        said = f"HTTP {status} {show(body)}"
        if status in _NEVER:
            said += f" {show(headers['location'])}" if "location" in headers else ""
            raise UserError(f"judge {endpoint.url}: {_NEVER[status]} ({said})", PAGE)
        if status in _TRY_AGAIN or status >= 500:
            reason, wait = said, _seconds(headers.get("retry-after", ""))
            continue
        if not 200 <= status < 300:
            raise JudgeError(f"the judge refuses the question: {said}")
        answer = _content(body)
        if answer is not None:
            return _without_key(answer)  # it is kept on disk
        reason = f"no chat completion: {show(body)}"
    raise NoAnswerError(f"the judge gives no answer ({endpoint.retries + 1} attempts): {reason}")


def request_of(endpoint: Endpoint, question: str) -> dict[str, Any]:
    """What is sent."""
    return {
        "model": endpoint.model,
        "messages": [{"role": "user", "content": question}],
        **endpoint.parameters,
    }


def show(text: str) -> str:
    """The beginning of a text from outside, in one line and without the key."""
    text = _without_key(" ".join(text[:10_000].split()))
    return repr(text if len(text) <= 200 else text[:197] + "...")


async def _post(client: httpx2.AsyncClient, url: str, request: Mapping[str, Any]) -> tuple[int, httpx2.Headers, str]:
    async with client.stream("POST", url, json=request) as response:
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise _BadAnswerError("its answer is compressed, which it was not asked for")
        body = bytearray()
        async for piece in response.aiter_raw():
            body += piece
            if len(body) > LARGEST_ANSWER:
                raise _BadAnswerError(f"its answer is longer than {LARGEST_ANSWER >> 20} MiB")
        return response.status_code, response.headers, body.decode("utf-8", "replace")


def _key() -> str:
    return os.environ.get(KEY_VARIABLE, "").strip()


def _without_key(text: str) -> str:
    key = _key()
    return text.replace(key, "[key]") if key else text


def _content(body: str) -> str | None:
    """The text of a chat completion; None where the answer is none."""
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    if content is None:
        return ""
    # Half a surrogate pair, which JSON can spell, could not be kept.
    return content.encode(errors="replace").decode() if isinstance(content, str) else None


def _seconds(text: str) -> float:
    try:
        return max(0.0, float(text))
    except ValueError:
        return 0.0  # a date, or nothing
