"""What a vLLM server must be before weights are loaded, and what the client makes of answers that are none."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_flags import message, parse

from posttrain.config import remark
from posttrain.errors import EngineLost, UserError
from posttrain.rollout.sampling import Sampling
from posttrain.rollout.vllm_client import GoneError, VLLMClient
from posttrain.rollout.vllm_engine import VLLMEngine, parameters
from posttrain.rollout.vllm_server import VLLMServer, check_server

GREEDY = Sampling(4, (2,), temperature=0.0)
REWARD = ["--reward_funcs", "accuracy_reward"]


def completion(version: str = "default", logprob: float = 0.0, **changes: Any) -> dict[str, Any]:
    choice = {"finish_reason": "length", "token_ids": [7], "logprobs": {"content": [{"logprob": logprob}]}}
    choice["weight_versions"] = [{"version": version, "start": 0, "end": 1}]
    return {"choices": [choice | changes]}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def answer(self) -> None:
        length = int(self.headers["Content-Length"] or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        self.server.asked.append((self.path, body, self.headers["Authorization"]))
        status, text = self.server.answers.get(self.path, (404, '{"detail":"Not Found"}'))
        if self.path == "/update_weight_version":
            self.server.version = body["new_version"]
        if callable(text):
            text = text(self.server)
        data = text.encode() if isinstance(text, str) else json.dumps(text).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = answer

    def log_message(self, *args: Any) -> None:
        """Keep quiet."""


class Server(ThreadingHTTPServer):
    """As vLLM answers when all is well; a test puts other answers in their place."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.version = "default"
        self.asked: list[tuple[str, Any, str | None]] = []
        self.answers: dict[str, tuple[int, Any]] = {
            "/health": (200, ""),
            "/version": (200, {"version": "0.32.0"}),
            "/v1/models": (200, {"data": [{"id": "m", "root": "models/base", "max_model_len": 64}]}),
            "/weight_info": (200, lambda server: {"weight_version": server.version}),
            "/collective_rpc": (200, {"results": [None]}),
            "/reset_prefix_cache": (200, {"success": True}),
            "/update_weight_version": (200, {"success": True}),
            "/inference/v1/generate": (200, lambda server: completion(server.version)),
        }

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def of(self, path: str) -> list[Any]:
        return [body for asked, body, _ in self.asked if asked == path]


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def config(address: str, *words: str) -> Any:
    there = ["--use_vllm", "--vllm_mode", "server", "--vllm_server_base_url", address, "--vllm_server_timeout", "5"]
    return parse("grpo", *REWARD, *there, *words)


def test_a_server_that_can_do_all_that_is_asked(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "key-1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    facts = check_server(config(f"{server.address}/"), 471)
    assert (facts.version, facts.model, facts.longest) == ("0.32.0", "models/base", 64)
    assert server.of("/inference/v1/generate")[0]["token_ids"] == [471]
    assert {key for _, _, key in server.asked} == {"Bearer key-1"}


@pytest.mark.parametrize(
    ("path", "answer", "text"),
    [
        ("/weight_info", (404, "{}"), "start it with VLLM_SERVER_DEV_MODE=1, and take a version that vllm.md names"),
        ("/inference/v1/generate", (404, "{}"), "start it with VLLM_SERVER_DEV_MODE=1, and take a version"),
        ("/inference/v1/generate", (403, "Scale-out endpoints are disabled: scale-out"), "with --enable-scale-out"),
        (
            "/v1/models",
            (401, "no: key-1"),
            "HTTP 401 'no: [key]'; set VLLM_API_KEY to the key that",
        ),
        ("/inference/v1/generate", (400, "Token id 471 is out of vocabulary"), "it serves another model than this one"),
        ("/inference/v1/generate", (200, completion(logprob=-0.4)), "start it with --logprobs-mode processed_logprobs"),
        ("/inference/v1/generate", (200, completion(weight_versions=None)), "without token_ids, logprobs and weight_v"),
        ("/inference/v1/generate", (200, completion(token_ids=[7, 8])), "without token_ids, logprobs and weight_vers"),
        ("/inference/v1/generate", (500, "engine is dead"), "HTTP 500 'engine is dead'; its own messages say why"),
        ("/v1/models", (200, {"models": []}), "which vLLM does not; is that a vLLM"),
        ("/version", (200, "<html>"), "which is no JSON; is that a vLLM"),
    ],
)
def test_a_server_that_cannot(
    server: Server, path: str, answer: tuple[int, Any], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "key-1")
    server.answers[path] = answer
    with pytest.raises(UserError) as caught:
        check_server(config(server.address), 471)
    assert server.address in str(caught.value) and text in str(caught.value)
    assert caught.value.page == "vllm.md#the-server"


def test_no_server_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        began = time.monotonic()
        with caplog.at_level("INFO", "posttrain"), pytest.raises(UserError, match=r"start it .*vllm_server_timeout"):
            check_server(config(address, "--vllm_server_timeout", "0.3"), 471)
    assert 0.3 <= time.monotonic() - began < 5
    assert "Waiting up to 0.3 s" in caplog.text


def test_weights_are_named_last_and_completions_of_others_are_not_taken(server: Server) -> None:
    backend = VLLMServer(VLLMClient(server.address, 5.0), rank=1)
    backend.load(Path("/weights/1"), "step-1")
    paths = [path for path, _, _ in server.asked]
    assert paths == ["/collective_rpc", "/reset_prefix_cache", "/update_weight_version"]
    assert server.of("/collective_rpc") == [{"method": "reload_weights", "kwargs": {"weights_path": "/weights/1"}}]
    assert len(backend.draw([[5, 6]], [1], GREEDY)) == 1
    assert server.of("/inference/v1/generate")[-1]["cache_salt"] == "step-1"
    # It starts anew behind our back: what it draws then carries its first name.
    server.version, before = "default", len(server.asked)
    assert len(backend.draw([[5, 6], [7]], [1, 2], GREEDY)) == 2
    paths = [path for path, _, _ in server.asked[before:]]
    again = ["/health", "/weight_info", "/collective_rpc", "/reset_prefix_cache", "/update_weight_version"]
    assert paths == ["/inference/v1/generate"] * 2 + again + ["/inference/v1/generate"] * 2
    # What it has cached before it got the weights is not read again.
    assert server.of("/inference/v1/generate")[-1]["cache_salt"] == "step-1.1.1"


def test_a_server_that_is_there_and_fails_is_given_up(server: Server) -> None:
    backend = VLLMServer(VLLMClient(server.address, 5.0), rank=0)
    backend.load(Path("/weights/1"), "step-1")
    server.answers["/inference/v1/generate"] = (500, "out of memory")
    with pytest.raises(EngineLost, match="HTTP 500 'out of memory'"):
        backend.draw([[5, 6]], [1], GREEDY)
    assert len(server.of("/inference/v1/generate")) == 3
    server.answers["/collective_rpc"] = (500, "shapes differ")
    with pytest.raises(EngineLost, match=r"does not take the weights in /weights/2: .*shapes differ"):
        backend.load(Path("/weights/2"), "step-2")


def test_a_server_that_falls_silent_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one whose machine has lost its power: connections stay open, and nobody answers."""
    monkeypatch.setattr("posttrain.rollout.vllm_client.WATCH_SECONDS", 0.05)
    monkeypatch.setattr("posttrain.rollout.vllm_client.CONNECT_SECONDS", 0.1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        client = VLLMClient(f"http://127.0.0.1:{silent.getsockname()[1]}", 0.3)
        request = {"token_ids": [1], "sampling_params": parameters(GREEDY, 1, None)}
        (answer,) = client.complete([request])
    assert isinstance(answer, GoneError) and "silent for 0.3 s" in str(answer)


def test_seeds_are_of_the_completion_and_settings_are_all_said() -> None:
    class Backend:
        def draw(self, prompts: list[list[int]], seeds: list[int], sampling: Sampling, regex: str | None) -> list[Any]:
            self.prompts, self.seeds = prompts, seeds
            return []

    backend, numbers = Backend(), np.array([[0.5, 0.1], [2**-53, 0.2], [1 - 2**-53, 0.3], [0.0, 0.4]])
    VLLMEngine(backend).generate(None, [np.array([5]), np.array([6, 7])], 2, GREEDY, numbers)  # type: ignore[arg-type]
    assert backend.prompts == [[5], [5], [6, 7], [6, 7]]
    assert backend.seeds == [2**52, 1, 2**53 - 1, 0]
    said = parameters(Sampling(9, (2, 3), 0.7, 0.9, 40, None, 1.1), 5, "[0-9]+")
    assert said == {
        **{"max_tokens": 9, "temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.0, "repetition_penalty": 1.1},
        **{"seed": 5, "logprobs": 0, "ignore_eos": True, "stop_token_ids": [2, 3], "detokenize": False},
        "structured_outputs": {"regex": "[0-9]+"},
    }


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            "--use_vllm --vllm_mode server --vllm_server_base_url localhost:8000",
            "is no address such as http://127.",
        ),
        ("--use_vllm --vllm_mode server --vllm_server_host a?b", "vllm_server_host: 'http://a?b:8000' is no address"),
        ("--use_vllm --load_in_8bit --use_peft", "whole weights, which load_in_8bit does not keep"),
        ("--use_vllm --top_p 0", "top_p is 0, which vLLM does not take"),
        ("--use_vllm --eval_repetition_penalty 0", "eval_repetition_penalty is 0, which vLLM does not take"),
        ("--use_vllm --vllm_max_model_length 512", "leaves no room for a prompt before max_completion_length 512"),
        ("--use_vllm --vllm_tensor_parallel_size 2", "is for a server: start it with --tensor-parallel-size"),
        ("--vllm_importance_sampling_cap 2 --vllm_importance_sampling_clip_max 3", "one thing under two names"),
        ("--vllm_importance_sampling_clip_min 5", "clip_min 5 is above vllm_importance_sampling_clip_max 3"),
        ("--vllm_mode serve", "did you mean server?"),
    ],
)
def test_flags_that_do_not_go_together(words: str, text: str) -> None:
    assert text in message("grpo", *REWARD, *words.split())


def test_addresses_and_flags_without_effect() -> None:
    def told(*words: str) -> str:
        return str(remark(parse("rloo", *REWARD, *words)))

    assert parse("rloo", *REWARD, "--vllm_server_host", "::1").vllm_address == "http://[::1]:8000"  # type: ignore[attr-defined]
    assert parse("rloo", *REWARD).vllm_address == "http://127.0.0.1:8000"  # type: ignore[attr-defined]
    assert "vllm_mode (it is for vLLM: add --use_vllm)" in told("--vllm_mode", "server")
    assert "vllm_server_port (it is for --vllm_mode server)" in told("--use_vllm", "--vllm_server_port", "9")
    server = ["--use_vllm", "--vllm_mode", "server", "--vllm_server_base_url", "http://a:1", "--vllm_server_port", "2"]
    assert "vllm_server_port (vllm_server_base_url says it)" in told(*server)
    assert "vllm_gpu_memory_utilization (the server's own" in told(*server, "--vllm_gpu_memory_utilization", "0.5")
    assert parse("grpo", *REWARD, "--vllm_importance_sampling_cap", "2").vllm_largest_weight == 2  # type: ignore[attr-defined]
