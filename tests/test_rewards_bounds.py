"""Mathematics from a model is bounded; a run that its rewards end says so and keeps what it has."""

import gc
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import tiny
from helpers_rewards import batch_of, column, rewards_of

from posttrain.checkpoints import checkpoints, what_is_wrong
from posttrain.cli import main
from posttrain.grading import is_same_mathematics
from posttrain.memory_limit import limited_memory
from posttrain.rollout.rewards.attempts import CallLostError, score_rows
from posttrain.rollout.rewards.batch import Failure, Scores
from posttrain.rollout.rewards.calls import FunctionName, Reply

HOSTILE = {
    "a tower of powers": r"\boxed{9^{9^{9^{9}}}}",
    "powers as Python writes them": r"\boxed{9**9**9**9}",
    "factorials": r"\boxed{9!!!!}",
    "a float beyond all": r"\boxed{1e999999999}",
    "a power of a matrix": r"\boxed{\begin{pmatrix}1&2\\3&4\end{pmatrix}^{99999999}}",
    "nested brackets": r"\boxed{" + "(" * 3000 + "1" + ")" * 3000 + "}",
    "nested boxes": r"\boxed{" * 5000,
    "a long number": r"\boxed{" + "9" * 100_000 + "}",
    "a series": r"\boxed{\sum_{i=1}^{10^{10}} i^{i}}",
}


@pytest.mark.parametrize("title", HOSTILE)
def test_hostile_mathematics_is_wrong_and_comes_to_an_end(title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.grading.MATH_TIMEOUT", 1)
    gc.disable()  # the limit is an exception, which would be lost in what another test has left to be collected
    try:
        assert is_same_mathematics(HOSTILE[title], "$4$") is False
    finally:
        gc.enable()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux says how much memory a process has")
def test_memory_is_bounded_for_as_long_as_asked() -> None:
    with limited_memory(32 << 20):
        bytes(8 << 20)
        with pytest.raises(MemoryError):
            bytes(256 << 20)
    bytes(256 << 20)


def test_an_answer_that_cannot_be_graded_in_time_is_wrong_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    """A limit of time far below math-verify's own, so that the process has to be ended."""
    batch = batch_of(["#### 4", HOSTILE["a tower of powers"], "#### 4", "#### 5"], solution=["4"] * 4)
    with rewards_of("accuracy_reward", reward_timeout=1.0, reward_workers=1, max_reward_failures=0) as rewards:
        assert column(rewards.submit(batch).result()) == [1.0, 0.0, 1.0, 0.0]
        assert (rewards.num_undecided, rewards.num_failures) == (1, 0)
    said = "answer given up on, which counts as wrong: accuracy_reward at data.jsonl:2: it took longer than 1 s"
    assert said in caplog.text


def test_every_answer_is_tried_however_many_are_given_up_on() -> None:
    def ask(request: Any) -> Iterator[Reply]:
        for completion in request.arguments["completions"]:
            if completion == "hangs":
                raise CallLostError("it took longer")
            yield Reply([1.0])

    scores = score_rows(ask, FunctionName("accuracy_reward"), {"completions": ["hangs"] * 5 + ["right"]})
    assert scores.values == [0.0] * 5 + [1.0]
    assert (len(scores.undecided), scores.failures) == (5, [])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("bounds")
    return tiny.write_base(folder / "model"), tiny.write_prompts(folder / "rows.jsonl")


def train(base: tuple[Path, Path], out: Path, *words: str) -> int:
    """Exit code of a run that saves after each step."""
    codes: list[int] = []
    flags = ["--save_strategy", "steps", "--save_steps", "1", "--max_steps", "4", *words]
    tiny.run_policy("grpo", *base, out, *flags, starter=lambda command: codes.append(main(command)))
    return codes[0]


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return f"{path}:score"


def assert_whole(out: Path, said: str) -> None:
    """Checkpoints, and no model."""
    assert "Traceback" not in said
    assert not (out / "model.safetensors").exists()
    found = checkpoints(out)
    assert found and all(what_is_wrong(folder) is None for folder in found)


DIES = """
calls = 0
def score(completions, **columns):
    global calls
    calls += 1
    if calls > 2:
        {how}
    return [float(len(one[0]["content"])) for one in completions]
"""


@pytest.mark.parametrize(
    ("how", "workers", "says"),
    [
        ("raise ValueError('gone')", "1", "ValueError: gone"),
        ("import sys; sys.exit(0)", "0", "SystemExit: 0"),
        ("return []", "0", "returned 0 rewards for 8 completions"),
    ],
)
def test_a_reward_that_dies_on_the_way_ends_the_run_with_its_checkpoints(
    how: str, workers: str, says: str, base: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mine = write(tmp_path / "mine.py", DIES.format(how=how))
    flags = ["--reward_funcs", mine, "--reward_workers", workers, "--max_reward_failures", "2"]
    assert train(base, tmp_path / "out", *flags) == 1
    said = capfd.readouterr().err
    assert says in said and "Checkpoints that the run has written are whole" in said
    assert_whole(tmp_path / "out", said)


ONCE = """
def score(completions, **columns):
    return [float("nan"), *(float(len(one[0]["content"])) for one in completions[1:])]
"""
FAILURES, UNDECIDED = "rewards/failures_per_generation", "rewards/undecided_per_generation"


def test_failures_are_counted_on_where_a_run_goes_on(
    base: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ["--reward_funcs", write(tmp_path / "mine.py", ONCE), "--max_reward_failures"]
    for _ in range(2):  # the second time from the checkpoint after the second failure
        assert train(base, tmp_path / "out", *flags, "2") == 1
        assert "rewards failed 3 times, more than --max_reward_failures 2" in capfd.readouterr().err
    assert train(base, tmp_path / "out", *flags, "4") == 0
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert [line[FAILURES] for line in history if FAILURES in line] == [1.0] * 4


def test_answers_given_up_on_are_logged_where_there_are_any(
    base: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finite(scores: Scores) -> Scores:
        batches.append(scores)
        scores.undecided += [Failure([0], "it took longer"), Failure([1], "it took longer")] * (len(batches) == 2)
        return scores

    batches: list[Scores] = []
    monkeypatch.setattr("posttrain.rollout.rewards.table._finite", finite)
    state = tiny.run_policy("rloo", *base, tmp_path / "out")
    assert [line.get(UNDECIDED) for line in state["log_history"] if FAILURES in line] == [None, 2.0, None]


@pytest.mark.parametrize("text", ["import sys; sys.exit(0)", "def score(completions, **c): exit()"])
def test_a_reward_that_never_works_is_a_mistake(
    text: str, base: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mine = write(tmp_path / "mine.py", text)
    flags = ["--reward_funcs", mine, "--max_reward_failures", "2"]  # in the process that trains
    assert train(base, tmp_path / "out", *flags) == 2
    said = capfd.readouterr().err
    assert "SystemExit" in said and "Traceback" not in said
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_judge_that_dies_on_the_way(
    base: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Judge(BaseHTTPRequestHandler):
        left = 20

        def do_GET(self) -> None:
            self.send_error(404)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            Judge.left -= 1
            body = b'{"choices": [{"message": {"content": "%d"}}]}' % (Judge.left % 7)
            self.send_response(200 if Judge.left > 0 else 503)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            """Keep quiet."""

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("posttrain.rollout.rewards.endpoint.FIRST_PAUSE", 0.01)
    server = HTTPServer(("127.0.0.1", 0), Judge)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/v1"
        flags = ["--reward_funcs", "judge:wise", "--judge_base_url", url, "--judge_retries", "1"]
        assert train(base, tmp_path / "out", *flags, "--max_reward_failures", "2") == 1
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    said = capfd.readouterr().err
    assert "the judge gives no answer (2 attempts): HTTP 503" in said
    assert_whole(tmp_path / "out", said)


def test_workers_go_before_the_training_where_memory_runs_out(tmp_path: Path) -> None:
    """Linux: the kernel takes the process with the highest number, of -1000 to 1000, and its memory."""
    if not Path("/proc/self/oom_score_adj").exists():
        pytest.skip("not Linux")
    mine = write(
        tmp_path / "mine.py",
        "def score(completions): return [float(open('/proc/self/oom_score_adj').read())] * len(completions)",
    )
    with rewards_of(mine) as rewards:
        assert column(rewards.submit(batch_of(["a"])).result()) == [1000.0]
    assert int(Path(f"/proc/{os.getpid()}/oom_score_adj").read_text()) < 1000
