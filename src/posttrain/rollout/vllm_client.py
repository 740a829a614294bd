"""vLLM's own HTTP server, as far as it is asked here: plain HTTP, without any package of vLLM's.

GET /health, /version, /v1/models. Opened by --enable-scale-out: POST /inference/v1/generate, token ids in, token ids
and log-probs out, each with the version of the weights that drew it. And by VLLM_SERVER_DEV_MODE=1: GET
/weight_info; POST /collective_rpc (reload_weights from a folder), /update_weight_version, /reset_prefix_cache.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

KEY_VARIABLE = "VLLM_API_KEY"  # vLLM's own variable for the key that its server wants
CONNECT_SECONDS = 10.0
# Requests under way at a time; a server has a queue of its own, and more would only hold connections open.
MOST_AT_ONCE = 512
# How often a server that has much to do is asked whether it is still there, and one that is not whether it is back.
WATCH_SECONDS = 5.0
POLL_SECONDS = 1.0
# Bytes of an answer: what surrounds the tokens, and far more than a token with its log-prob takes.
_MOST_BYTES, _MOST_BYTES_A_TOKEN = 1 << 20, 1 << 12


class GoneError(Exception):
    """The server does not answer, or has failed: it may come back."""


class RefusedError(Exception):
    """The server answers, and will not do what it is asked, now or later."""


@dataclass(frozen=True)
class Answer:
    """A completion.

    Args:
        token_ids: (length,) int64, with the token that ended it.
        logprobs: (length,) float32, as the server's --logprobs-mode says.
        ended: whether a stop token ended it.
        versions: of the weights that drew its tokens.
    """

    token_ids: np.ndarray
    logprobs: np.ndarray
    ended: bool
    versions: frozenset[str]


@dataclass(frozen=True)
class ServerFacts:
    """What a server tells of itself.

    Args:
        version: of vLLM.
        model: name or path of what it has loaded.
        longest: prompt and completion together, in tokens.
    """

    version: str
    model: str
    longest: int


class VLLMClient:
    """Asks one server.

    Args:
        address: such as http://127.0.0.1:8000.
        patience: seconds that it may be silent for.
    """

    def __init__(self, address: str, patience: float) -> None:
        self.address, self.patience = address, patience
        self._key = key = os.environ.get(KEY_VARIABLE, "").strip()
        # No compression: a small answer could grow to any size.
        # Reading the system's certificates takes longer than most requests.
        self._certificates = httpx2.create_ssl_context() if address.startswith("https") else False
        self._headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})

    def wait(self, is_asked_to_end: Callable[[], bool], tell: Callable[[str], None]) -> None:
        """Until the server is there.

        Args:
            is_asked_to_end: whether to give up.
            tell: called once if it is not there at once, with the reason.

        Raises:
            GoneError: it does not come within `patience`, or the run is asked to end.
        """
        began, reason = time.monotonic(), ""
        while (now := self._health()) is not None:
            if not reason:
                tell(now)
            reason = now
            if time.monotonic() - began >= self.patience or is_asked_to_end():
                raise GoneError(reason)
            time.sleep(min(POLL_SECONDS, self.patience))

    def facts(self) -> ServerFacts:
        """What the server tells of itself.

        Raises:
            GoneError, RefusedError: it does not.
        """
        version, models = self._one("GET", "/version"), self._one("GET", "/v1/models")
        try:
            model = models["data"][0]
            return ServerFacts(str(version["version"]), str(model["root"]), int(model["max_model_len"]))
        except (LookupError, TypeError, ValueError) as error:
            raise RefusedError(f"/v1/models answers {_show(json.dumps(models))}, which vLLM does not") from error

    def weight_version(self) -> str:
        """The name of the weights that the server has; a fresh one has a name of its own for those it began with.

        Raises:
            GoneError, RefusedError: it does not tell.
        """
        try:
            return str(self._one("GET", "/weight_info")["weight_version"])
        except (LookupError, TypeError) as error:
            raise RefusedError("/weight_info names no version of the weights") from error

    def load(self, folder: Path, version: str) -> None:
        """Has the server read weights, forget what it has cached under others, and then name them.

        Args:
            folder: of a model, under its path on the server's machine.
            version: what to call them.

        Raises:
            GoneError, RefusedError: it has not.
        """
        order = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        try:
            self._one("POST", "/collective_rpc", order)
        except GoneError as gone:
            if self._health() is None:  # it is well, and cannot read them
                raise RefusedError(f"it does not take the weights in {folder}: {gone}") from gone
            raise
        self._one("POST", "/reset_prefix_cache", {})
        # Last: completions that were drawn before this carry an older name, and are not taken.
        self._one("POST", "/update_weight_version", {"new_version": version})

    def complete(self, requests: Sequence[Mapping[str, Any]]) -> list[Answer | GoneError]:
        """Completions of many prompts, all at the same time.

        Args:
            requests: bodies for /inference/v1/generate.

        Returns:
            One answer a request, or why there is none.

        Raises:
            RefusedError: the server will never answer one of them.
        """
        return asyncio.run(self._complete(requests))

    async def _complete(self, requests: Sequence[Mapping[str, Any]]) -> list[Answer | GoneError]:
        async with self._client() as client:

            async def ask(request: Mapping[str, Any]) -> Answer:
                most = _MOST_BYTES + _MOST_BYTES_A_TOKEN * int(request["sampling_params"]["max_tokens"])
                return _answer(await self._send(client, "POST", "/inference/v1/generate", request, most))

            return await self._watched([ask(request) for request in requests])

    def _one(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        async def send() -> Any:
            async with self._client() as client:
                return (await self._watched([self._send(client, method, path, body, _MOST_BYTES)]))[0]

        found = asyncio.run(send())
        if isinstance(found, GoneError):
            raise found
        return found

    async def _watched(self, work: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
        """Results, or GoneErrors. What is under way may take as long as it likes, while the server shows that it is
        alive: nobody tells of a machine that has lost its power."""
        tasks = [asyncio.ensure_future(one) for one in work]
        watch = asyncio.create_task(self._watch(tasks))
        found = await asyncio.gather(*tasks, return_exceptions=True)
        watch.cancel()
        for index, one in enumerate(found):
            if isinstance(one, asyncio.CancelledError):
                found[index] = GoneError(f"it was silent for {self.patience:g} s")
            elif isinstance(one, BaseException) and not isinstance(one, GoneError):
                raise one
        return found

    async def _watch(self, tasks: Sequence[asyncio.Future[Any]]) -> None:
        heard = time.monotonic()
        while time.monotonic() - heard < self.patience:
            await asyncio.sleep(min(WATCH_SECONDS, self.patience))
            # A connection of its own, which no other request keeps waiting.
            with contextlib.suppress(httpx2.RequestError, TimeoutError):
                async with self._client() as client, asyncio.timeout(CONNECT_SECONDS):
                    await client.get("/health")
                heard = time.monotonic()
        for task in tasks:
            task.cancel()

    async def _send(
        self, client: httpx2.AsyncClient, method: str, path: str, body: Mapping[str, Any] | None, most: int
    ) -> Any:
        """What a server answers, read as JSON; None where it says nothing."""
        text = bytearray()
        try:
            async with client.stream(method, path, json=body) as response:
                async for piece in response.aiter_raw():
                    text += piece
                    if len(text) > most:
                        raise RefusedError(f"its answer to {path} is longer than {most:,} bytes")
        except httpx2.RequestError as error:
            raise GoneError(f"{type(error).__name__} {error}".strip(" .")) from error
        shown = text.decode("utf-8", "replace")
        said = f"{path}: HTTP {response.status_code} {_show(shown.replace(self._key, '[key]') if self._key else shown)}"
        if response.status_code >= 500:
            raise GoneError(said)
        if response.status_code != 200:
            raise RefusedError(said)
        try:
            return json.loads(text) if text else None
        except ValueError as error:
            raise RefusedError(f"{said}, which is no JSON") from error

    def _health(self) -> str | None:
        """Why the server is not there; None: it is."""

        async def ask() -> None:
            async with self._client() as client, asyncio.timeout(CONNECT_SECONDS):
                await self._send(client, "GET", "/health", None, _MOST_BYTES)

        try:
            asyncio.run(ask())
        except TimeoutError:
            return f"no answer within {CONNECT_SECONDS:g} s"
        except (GoneError, RefusedError) as error:
            return str(error)
        return None

    def _client(self) -> httpx2.AsyncClient:
        limits = httpx2.Limits(max_connections=MOST_AT_ONCE)
        timeout = httpx2.Timeout(None, connect=CONNECT_SECONDS)
        # No proxy of the environment: a server that trains with this one is no stranger.
        return httpx2.AsyncClient(
            base_url=self.address,
            headers=self._headers,
            timeout=timeout,
            limits=limits,
            verify=self._certificates,
            trust_env=False,
        )


def _answer(body: Any) -> Answer:
    try:
        choice = body["choices"][0]
        if choice["finish_reason"] not in ("stop", "length"):
            raise GoneError(f"it ended a completion with {_show(str(choice['finish_reason']))}")
        ids = np.array(choice["token_ids"], dtype=np.int64)
        logprobs = np.array([token["logprob"] for token in choice["logprobs"]["content"]], dtype=np.float32)
        versions = frozenset(str(span["version"]) for span in choice["weight_versions"])
        if ids.ndim != 1 or ids.shape != logprobs.shape or not len(ids):
            raise ValueError(f"{ids.shape} token ids and {logprobs.shape} log-probs")
    except (LookupError, TypeError, ValueError) as error:
        raise RefusedError(
            f"a completion comes without token_ids, logprobs and weight_versions: {_show(json.dumps(body))}"
        ) from error
    return Answer(ids, logprobs, choice["finish_reason"] == "stop", versions)


def _show(text: str) -> str:
    """The beginning of a text from outside, in one line."""
    text = " ".join(text[:10_000].split())
    return repr(text if len(text) <= 300 else text[:297] + "...")
