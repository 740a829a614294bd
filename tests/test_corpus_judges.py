"""Judges that misbehave, as real servers: a counted failure, or a message; within the limits of time and size."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from corpus.judges import CASES, GIGABYTE, Endless
from helpers_rewards import batch_of, column, config_of, rewards_of

from posttrain.errors import RunFailed, UserError
from posttrain.rollout.rewards.check import check_rewards
from posttrain.rollout.rewards.endpoint import check_endpoint


class Server:
    """Answers each question as the case says whose number the address names."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.titles = list(CASES)
        self.thread = threading.Thread(target=self.serve)
        self.closed = threading.Event()
        self.answers: list[threading.Thread] = []
        self.thread.start()

    def url(self, title: str) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}/{self.titles.index(title)}/v1"

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.answers.append(threading.Thread(target=self.answer, args=(connection,)))
            self.answers[-1].start()

    def answer(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            try:
                if stream.peek(1)[:1] == b"\x16":  # the beginning of TLS
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    return
                path = stream.readline().split()[1:2]
                length = 0
                while line := stream.readline().strip():
                    name, _, value = line.lower().partition(b":")
                    length = int(value) if name == b"content-length" else length
                stream.read(length)
                number = path[0].split(b"/")[1] if path else b""
                for piece in (
                    CASES[self.titles[int(number)]].sends if number.isdigit() else [b"HTTP/1.1 200 OK\r\n\r\n"]
                ):
                    if piece is None:
                        self.closed.wait(20)
                        return
                    connection.sendall(piece)
            except OSError:
                return  # nobody reads any more

    def close(self) -> None:
        self.closed.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in [self.thread, *self.answers]:
            thread.join()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setattr("posttrain.rollout.rewards.endpoint.FIRST_PAUSE", 0.01)


def flags(url: str, folder: Path, **others: Any) -> dict[str, Any]:
    return {"judge_base_url": url, "cache_dir": str(folder), "judge_retries": 1, **others}


@pytest.mark.parametrize("title", CASES)
def test_a_judge_that_misbehaves(title: str, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    case = CASES[title]
    settings = flags(server.url(title), tmp_path, judge_timeout=0.3 if case.times_out else 20.0)
    with rewards_of("judge:wise", **settings) as rewards:
        pending = rewards.submit(batch_of(["a"]))
        if case.mistake:
            with pytest.raises(UserError) as error:
                pending.result()
            assert case.mistake in str(error.value)
            assert "sk-secret" not in str(error.value)
        else:
            assert column(pending.result()) == [case.value]
            assert rewards.num_failures == (case.value is None)
            assert case.says in caplog.text
    assert len(caplog.text) < 2000
    assert all(line.isprintable() for line in caplog.text.split("\n"))
    if isinstance(case.sends, Endless):
        assert 0 < case.sends.sent < GIGABYTE // 32  # what buffers on the way hold, and no more
        assert (tmp_path / "judge.sqlite").stat().st_size < 100_000


def test_a_judge_that_is_lost_is_not_asked_about_every_row(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = flags(server.url("never answers"), tmp_path, judge_timeout=0.2, judge_concurrency=4)
    start = time.monotonic()
    with rewards_of("judge:wise", max_reward_failures=200, **settings) as rewards:
        assert column(rewards.submit(batch_of([str(i) for i in range(200)])).result()) == [None] * 200
    assert time.monotonic() - start < 10.0  # 200 questions by 4, twice each, would take 20 s
    assert rewards.num_failures == 200
    assert "not asked, after 4 questions in a row without an answer" in caplog.text


def test_a_judge_that_dies_on_the_way_is_no_mistake(server: Server, tmp_path: Path) -> None:
    good, bad = "another type of content", "closes at once"
    with rewards_of("judge:wise", max_reward_failures=0, **flags(server.url(good), tmp_path)) as rewards:
        assert column(rewards.submit(batch_of(["a"])).result()) == [7.0]
        judge = rewards._rewards[0]
        object.__setattr__(judge._endpoint, "base_url", server.url(bad))  # the same server, from now on
        with pytest.raises(RunFailed, match="Checkpoints that the run has written are whole"):
            rewards.submit(batch_of(["b"])).result()


def nobody() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


# What is wrong before anything is loaded → the message.
ADDRESSES = {
    "nobody there": ("http://127.0.0.1:{nobody}/v1", "cannot be reached: 'ConnectError"),
    "TLS where there is none": ("https://127.0.0.1:{port}/v1", "cannot be reached: 'ConnectError"),
    "no such host": ("http://no-such-host.invalid/v1", "cannot be reached: 'ConnectError"),
    "a port that is none": ("http://127.0.0.1:99999/v1", "is no address"),
    "no port": ("http://127.0.0.1:0/v1", "is no address"),
    "brackets": ("http://[::1/v1", "is no address"),
    "no host": ("http:///v1", "is no address"),
    "another scheme": ("file:///etc/passwd", "is no address"),
    "a line break": ("http://127.0.0.1/\nv1", "is no address"),
    "a password": ("http://me:sk-word@127.0.0.1/v1", "put the key into the environment"),
    "a password in brackets": ("http://me:sk-word@[::1/v1", "put the key into the environment"),
}


@pytest.mark.parametrize("title", ADDRESSES)
def test_an_address_where_no_judge_can_be(title: str, server: Server, tmp_path: Path) -> None:
    url, says = ADDRESSES[title]
    port = server.listener.getsockname()[1]
    settings = flags(url.format(nobody=nobody(), port=port), tmp_path)
    with pytest.raises(UserError) as error:
        check_rewards(config_of("judge:wise", **settings))
    assert says in str(error.value)
    assert "sk-" not in str(error.value)


def test_kept_answers_may_be_all_that_a_run_needs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "judge.sqlite").touch()
    check_rewards(config_of("judge:wise", **flags(f"http://127.0.0.1:{nobody()}/v1", tmp_path)))
    assert "cannot be reached" in caplog.text


def test_whoever_answers_anything_is_there(server: Server) -> None:
    for title in ("404", "garbage", "closes at once", "a gigabyte in chunks"):
        check_endpoint(server.url(title))


@pytest.mark.parametrize(
    ("variable", "value"), [("OPENAI_API_KEY", "sk-top\nsk-secret"), ("HTTP_PROXY", "odd://me:sk-secret@x")]
)
def test_an_environment_that_cannot_be_used(
    variable: str, value: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError) as error:
        check_endpoint(server.url("404"))
    assert variable in str(error.value)
    assert "secret" not in str(error.value)
