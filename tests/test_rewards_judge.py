"""A judge behind an endpoint that behaves, and behind one that does not; and behind `transformers serve`."""

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import tiny
from helpers_rewards import batch_of, column, message, rewards_of

from posttrain.errors import UserError
from posttrain.rollout.rewards.judge import AnswerCache
from posttrain.rollout.rewards.rubric import Rubric, read_score


class Handler(BaseHTTPRequestHandler):
    """Misbehaves as the server's `script` says, a word a request, then answers with the length of the question."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.requests.append({"path": self.path, "key": self.headers["Authorization"], "body": body})
            step = server.script.pop(0) if server.script else "good"
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        time.sleep(server.pause)
        with server.lock:
            server.at_once -= 1
        question = body["messages"][0]["content"]
        answer = step.removeprefix("say ") if step.startswith("say ") else f"So.\n**Score:** {len(question)}"
        good = json.dumps({"choices": [{"message": {"role": "assistant", "content": answer}}]}).encode()
        if step == "slow":
            time.sleep(1.5)
        if step.isdecimal():
            self.reply(int(step), f"no: your key {self.headers['Authorization']}".encode())
        elif step == "cut off":
            self.reply(200, good[:20], length=len(good))
            self.close_connection = True
        elif step == "garbage":
            self.reply(200, b"<html>it is cold here</html>")
        elif step == "hang up":
            self.close_connection = True
        else:
            self.reply(200, good)

    def reply(self, status: int, body: bytes, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        if status == 429:
            self.send_header("Retry-After", "0.3")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Keep quiet."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        self.pause = 0.0
        self.at_once = self.most_at_once = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has given up is no news."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("posttrain.rollout.rewards.endpoint.FIRST_PAUSE", 0.01)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def rubric(tmp_path: Path) -> str:
    path = tmp_path / "rubric.txt"
    path.write_text("{{ completion }}", encoding="utf-8")
    return str(path)


def judged(server: Server, rubric: str, cache: Path, *completions: str, **flags: Any) -> tuple[list[float | None], int]:
    url = f"http://127.0.0.1:{server.server_port}/v1"
    settings: dict[str, Any] = {"judge_rubric": rubric, "cache_dir": str(cache), "judge_timeout": 30.0} | flags
    with rewards_of("judge:org/wise", judge_base_url=url, **settings) as rewards:
        assert rewards.names == ["judge_wise"]
        return column(rewards.submit(batch_of(completions)).result()), rewards.num_failures


def test_questions_and_answers(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    path = tmp_path / "rubric.jinja"
    path.write_text("{{ prompt }}|{{ completion }}|{{ topic }}", encoding="utf-8")
    batch = batch_of([message("a"), message("bb")], [message("2+2?", "user")] * 2, topic=["sums", "words"])
    url = f"http://127.0.0.1:{server.server_port}/v1/"
    flags = {"judge_rubric": str(path), "cache_dir": str(tmp_path), "judge_parameters": {"temperature": 0, "seed": 1}}
    with rewards_of("judge:wise", judge_base_url=url, **flags) as rewards:
        assert column(rewards.submit(batch).result()) == [11.0, 13.0]
    first = min(server.requests, key=lambda request: len(str(request)))
    assert first == {
        "path": "/v1/chat/completions",
        "key": "Bearer sk-secret",
        "body": {
            "model": "wise",
            "messages": [{"role": "user", "content": "2+2?|a|sums"}],
            "temperature": 0,
            "seed": 1,
        },
    }
    assert b"sk-secret" not in (tmp_path / "judge.sqlite").read_bytes()


@pytest.mark.parametrize("step", ["500", "503", "408", "slow", "cut off", "garbage", "hang up"])
def test_what_may_pass_is_tried_again(server: Server, rubric: str, tmp_path: Path, step: str) -> None:
    server.script = [step, step]
    assert judged(server, rubric, tmp_path, "abc", judge_timeout=1.0 if step == "slow" else 30.0) == ([3.0], 0)
    assert len(server.requests) == 3


def test_a_busy_endpoint_says_how_long_to_wait(server: Server, rubric: str, tmp_path: Path) -> None:
    server.script = ["429"]
    start = time.monotonic()
    assert judged(server, rubric, tmp_path, "abc") == ([3.0], 0)
    assert time.monotonic() - start > 0.3


def test_what_does_not_pass_is_a_failure(
    server: Server, rubric: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server.script = ["500", "garbage", "500"]
    assert judged(server, rubric, tmp_path, "abc", judge_retries=2) == ([None], 1)
    assert "judge_wise at data.jsonl:1: the judge gives no answer (3 attempts): HTTP 500" in caplog.text
    assert "[key]" in caplog.text
    assert "sk-secret" not in caplog.text
    server.script = ["400"]  # this question is refused, others may not be
    assert judged(server, rubric, tmp_path, "abc", "abcd", judge_concurrency=1) == ([None, 4.0], 1)


@pytest.mark.parametrize(("status", "words"), [("401", "key is not accepted"), ("404", "no such endpoint or model")])
def test_what_can_never_work_ends_the_run(server: Server, rubric: str, tmp_path: Path, status: str, words: str) -> None:
    server.script = [status] * 2
    with pytest.raises(UserError, match=words):
        judged(server, rubric, tmp_path, "a", "b")


def test_answers_without_a_score_are_failures(
    server: Server, rubric: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.script = ["say I would rather not."]
    assert judged(server, rubric, tmp_path, "abc") == ([None], 1)
    assert "has no `Score: number`: 'I would rather not.'" in caplog.text
    server.script = ["say Score: " + "9" * 50]
    assert judged(server, rubric, tmp_path, "abcd") == ([None], 1)
    assert "it gave 1e+50, which is no usable number" in caplog.text


def test_an_answer_is_asked_for_once(server: Server, rubric: str, tmp_path: Path) -> None:
    assert judged(server, rubric, tmp_path, "abc", "ab", "abc")[0] == [3.0, 2.0, 3.0]
    assert len(server.requests) == 2  # equal completions are one question
    assert judged(server, rubric, tmp_path, "ab", "abc", "a")[0] == [2.0, 3.0, 1.0]
    assert len(server.requests) == 3  # a later run asks what is new
    judged(server, rubric, tmp_path, "a", judge_parameters={"temperature": 1})
    assert len(server.requests) == 4  # other parameters, another question


def test_requests_at_a_time(server: Server, rubric: str, tmp_path: Path) -> None:
    server.pause = 0.05
    completions = ["x" * n for n in range(1, 13)]
    scores, _ = judged(server, rubric, tmp_path, *completions, judge_concurrency=3)
    assert scores == [float(n) for n in range(1, 13)]  # in the order of the rows
    assert server.most_at_once == 3


PUT_MANY = """
import pathlib, sys
from posttrain.rollout.rewards.judge import AnswerCache
cache = AnswerCache(pathlib.Path(sys.argv[1]))
assert all(cache.put(str(key), sys.argv[2]) in {"0", "1", "2"} for key in range(50))
"""


def test_several_processes_keep_answers_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "judge.sqlite"
    commands = [[sys.executable, "-c", PUT_MANY, str(path), str(number)] for number in range(3)]
    processes = [subprocess.Popen(command) for command in commands]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    cache = AnswerCache(path)
    assert all(cache.get(str(key)) in {"0", "1", "2"} for key in range(50))
    cache.close()


def test_a_file_that_is_no_cache(tmp_path: Path) -> None:
    path = tmp_path / "judge.sqlite"
    path.write_text("not a database, but long enough to be taken for one " * 20, encoding="utf-8")
    with pytest.raises(UserError, match="cannot be kept"):
        AnswerCache(path)


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("Score: 7", 7.0),
        ("It is good.\n**Score:** 7.5/10", 7.5),
        ("score = -2", -2.0),
        ("Score: 3\nNo.\nScore: 4.", 4.0),
        (" 8 ", 8.0),
        (".5", 0.5),
        ("Score: high", None),
        ("I give 7 points", None),
        ("", None),
    ],
)
def test_the_number_in_an_answer(answer: str, score: float | None) -> None:
    assert read_score(answer) == score


def test_the_built_in_rubric_asks_for_what_is_read() -> None:
    rubric = Rubric(None)
    [text] = rubric.render(batch_of(["four"], ["2+2?"]))
    assert rubric.columns == []
    assert "2+2?" in text
    assert "four" in text
    assert text.rstrip().endswith("Score: <number>")


def test_a_model_behind_transformers_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "model"
    words = [{"role": "user", "content": "."}, {"role": "assistant", "content": "Score: 7"}]
    rows = [{"messages": [words[0] | {"content": text}, words[1]]} for text in ("2+2?|4", "1+1?|3", "a", "bc|d")]
    base, data = tiny.write_base(tmp_path / "base"), tiny.write_rows(tmp_path / "rows.jsonl", rows)
    tiny.run("sft", base, data, model, "--max_steps", "60", "--per_device_train_batch_size", "4")
    rubric = tmp_path / "rubric.jinja"
    rubric.write_text("{{ prompt }}|{{ completion }}", encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(model)]
    process = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"])
    try:
        _wait_for_server(process, f"http://127.0.0.1:{port}/health")
        with rewards_of(
            f"judge:{model}",
            judge_base_url=f"http://127.0.0.1:{port}/v1",
            judge_rubric=str(rubric),
            judge_parameters={"temperature": 0, "max_tokens": 16},
            cache_dir=str(tmp_path),
        ) as rewards:
            scores = column(rewards.submit(batch_of(["4", "3"], ["2+2?", "1+1?"])).result())
        assert scores == [7.0, 7.0]
        assert rewards.num_failures == 0
    finally:
        process.terminate()
        process.wait(timeout=20)


def _wait_for_server(process: "subprocess.Popen[bytes]", url: str) -> None:
    deadline = time.monotonic() + 60
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        assert process.poll() is None, "the server has ended"
        try:
            opener.open(url, timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.1)
