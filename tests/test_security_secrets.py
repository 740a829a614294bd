"""Secrets are written nowhere: every file that runs leave, and all that they print, is searched for each of them."""

import gzip
import json
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tiny

from posttrain.cli import main
from posttrain.errors import UserError
from posttrain.experiment.params import stage_config

# One value each, none a part of another, so that a finding tells where it came from.
ENVIRONMENT = {
    "HF_TOKEN": "hf_mHubMarkMarkMarkMarkMarkMarkMarkMark",
    "OPENAI_API_KEY": "sk-mJudgeMark0123456789MarkMark",
    "WANDB_API_KEY": "mWandbMark0123456789012345678901234567890",
    "MLFLOW_TRACKING_PASSWORD": "mMlflowMark",
    "MLFLOW_TRACKING_URI": "https://me:mMlflowUriMark@tracking.invalid",
    "AWS_SECRET_ACCESS_KEY": "mAwsMark/0123456789",
    "HTTPS_PROXY": "http://me:mProxyMark@proxy.invalid:3128",
    "GIT_ASKPASS_SECRET": "mGitMark",
}
MARKS = ["mHubMark", "mJudgeMark", "mWandbMark", "mMlflowMark", "mMlflowUriMark", "mAwsMark", "mProxyMark", "mGitMark"]
FLAG = "hf_mFlagMarkMarkMarkMarkMarkMarkMarkMark"


class Judge(BaseHTTPRequestHandler):
    """Says the key that it was given in every answer, and refuses every fourth question with it."""

    count = 0

    def do_GET(self) -> None:
        self.send_error(404)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        Judge.count += 1
        text = f"Your key is {self.headers['Authorization']}. Score: {Judge.count % 7}"
        body = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
        self.send_response(400 if Judge.count % 4 == 0 else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        """Keep quiet."""


@pytest.fixture
def judge() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def contents(path: Path) -> Iterator[bytes]:
    """The bytes of a file, and what is packed in them."""
    yield path.read_bytes()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield from (archive.read(name) for name in archive.namelist())
    elif path.suffix == ".gz":
        yield gzip.decompress(path.read_bytes())
    elif path.suffix == ".parquet":
        yield str(pq.read_table(path).to_pylist()).encode()


def assert_nowhere(marks: list[str], folder: Path, printed: str) -> set[str]:
    """No secret in any file or in what was printed; returns the names of the files."""
    assert not [mark for mark in marks if mark in printed]
    files = [path for path in folder.rglob("*") if path.is_file()]
    found = [(mark, path) for path in files for text in contents(path) for mark in marks if mark.encode() in text]
    assert not found
    return {path.name for path in files}


def printed(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> str:
    said = capfd.readouterr()
    return said.out + said.err + caplog.text


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x mHubMark x")
    with pytest.raises(AssertionError):
        assert_nowhere(MARKS, tmp_path, "")
    (tmp_path / "a.txt").unlink()
    with zipfile.ZipFile(tmp_path / "a.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner", "mHubMark" * 100)
    with pytest.raises(AssertionError):
        assert_nowhere(MARKS, tmp_path, "")
    with pytest.raises(AssertionError):
        assert_nowhere(["mGitMark"], tmp_path, "mGitMark")


def test_no_secret_of_the_environment_is_left(
    judge: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """GRPO with a judge: checkpoints, a work folder, completions, metrics, the judge's answers, a run that fails."""
    base, data = tiny.write_base(tmp_path / "model"), tiny.write_prompts(tmp_path / "rows.jsonl")
    words = ["--reward_funcs", "judge:wise", "--judge_base_url", judge]
    words += ["--save_strategy", "steps", "--save_steps", "1", "--log_completions", "--max_steps", "2"]
    words += ["--metrics_file", str(tmp_path / "m.json"), "--plots_file", str(tmp_path / "p.csv")]
    work = tmp_path / "work"
    tiny.run_policy(
        "grpo", base, data, tmp_path / "out", *words, "--work_dir", str(work), "--max_reward_failures", "99"
    )
    codes: list[int] = []
    failing = [*words, "--max_reward_failures", "0", "--report_to", "tensorboard"]
    tiny.run_policy("grpo", base, data, tmp_path / "no", *failing, starter=lambda all: codes.append(main(all)))
    assert codes[0] != 0 and main(["env"]) == 0
    said = printed(capfd, caplog)
    assert "[key]" in said  # the judge has tried
    names = assert_nowhere(MARKS, tmp_path, said)
    assert {"run.json", "README.md", "trainer_state.json", "optimizer.pt", "judge.sqlite", "m.json"} <= names
    assert any(name.startswith("completions_") for name in names)
    assert any(name.startswith("events.out") for name in names)


def test_the_token_of_a_flag_is_left_nowhere(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    base, data = tiny.write_base(tmp_path / "model"), tiny.write_preference(tmp_path / "rows.jsonl")
    words = ["--hub_token", FLAG, "--save_strategy", "steps", "--save_steps", "1", "--report_to", "tensorboard"]
    tiny.run("dpo", base, data, tmp_path / "out", *words, "--max_steps", "1", "--precompute_ref_log_probs")
    names = assert_nowhere([*MARKS, "mFlagMark"], tmp_path, printed(capfd, caplog))
    assert {"run.json", "optimizer.pt"} <= names


REFUSED: dict[str, tuple[str, Any]] = {
    "a password in an address": ("vllm_server_base_url", "http://me:mMark1@host:8000"),
    "a password without a name": ("vllm_server_base_url", "http://:mMark1@host:8000"),
    "data behind a password": ("dataset_name", "https://me:mMark1@host/rows.jsonl"),
    "a signed address": ("dataset_name", "https://host/rows.jsonl?X-Amz-Signature=mMark1"),
    "a token in an address": ("model_name_or_path", "https://host/model?access_token=mMark1"),
    "a key for the judge": ("judge_parameters", {"extra_headers": {"Authorization": "Bearer mMark1"}}),
    "a key of a model": ("model_init_kwargs", {"token": "mMark1"}),
    "an address in a mapping": ("model_init_kwargs", {"proxies": {"https": "http://me:mMark1@host"}}),
    "a token of the hub as a name": ("run_name", "hf_mMark1" + "x" * 30),
    "a key of a judge as a name": ("run_name", "sk-mMark1" + "X" * 30),
    "a key of a project": ("run_name", "sk-proj-mMark1-x_" + "x1" * 30),
    "a key of another service": ("run_name", "sk-ant-api03-mMark1_" + "aB3" * 30 + "-AA"),
}


@pytest.mark.parametrize("title", REFUSED)
def test_a_flag_that_holds_a_secret_is_refused(
    title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the command line, and in params.yaml, which DVC copies to dvc.lock."""
    monkeypatch.chdir(tmp_path)
    name, value = REFUSED[title]
    text = value if isinstance(value, str) else json.dumps(value)
    flags = {"model_name_or_path": "m", "dataset_name": "d", "reward_funcs": "accuracy_reward"} | {name: text}
    words = [word for flag, one in flags.items() for word in (f"--{flag}", one)]
    assert main(["grpo", *words, "--output_dir", "out"]) == 2
    said = capsys.readouterr().err
    assert name in said and "which would be written into checkpoints and to trackers" in said
    assert "mMark1" not in said and not list(tmp_path.iterdir())
    section = {"model_name_or_path": "m", "dataset_name": "d", "reward_funcs": ["accuracy_reward"]} | {name: value}
    (tmp_path / "params.yaml").write_text(json.dumps({"grpo": section}), encoding="utf-8")
    with pytest.raises(UserError, match=r"params.yaml: grpo: .* would be written") as error:
        stage_config("grpo", ["--output_dir", "out"])
    assert "mMark1" not in str(error.value)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("run_name", "sk-learn-and-other-things-fine-tuned"),
        ("run_name", "sk-learn-Baseline-2024-lr1e5"),
        ("run_name", "out/sk-Model-7B-Instruct-v2-long_2024_and_longer"),
        ("run_name", "https://host/rows.jsonl?page=2"),
        ("run_name", "a@b:c@d"),
        ("model_init_kwargs", {"authorization": "none", "token": True}),
    ],
)
def test_what_only_looks_like_a_secret(flag: str, value: Any, tmp_path: Path) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    words = ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", str(tmp_path), f"--{flag}", text]
    stage = {"sft": {}}
    (tmp_path / "params.yaml").write_text(json.dumps(stage), encoding="utf-8")
    config, _ = stage_config("sft", ["--params", str(tmp_path / "params.yaml"), *words])
    assert getattr(config, flag) == value
