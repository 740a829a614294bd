"""With vLLM itself, where there is an environment that has it: `POSTTRAIN_VLLM_PYTHON=/path/to/its/bin/python pytest
tests/test_vllm_real.py`. Some minutes; most of it is vLLM that starts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SIZES, run, run_policy, sums, write_prompts, write_rows
from transformers import AutoModelForCausalLM

from posttrain.cli import main
from posttrain.embedded.tokenizer import train_tokenizer, write_tokenizer
from posttrain.embedded.weights import write_model

PYTHON = os.environ.get("POSTTRAIN_VLLM_PYTHON", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="POSTTRAIN_VLLM_PYTHON names no environment with vLLM")
ON_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
ENVIRONMENT = ON_CPU | {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
DIFFERENCE = "sampling/sampling_logp_difference"


class Server:
    """`vllm serve MODEL`, which may be killed and started again."""

    def __init__(self, model: Path, log: Path, *words: str) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        # What `vllm serve` calls; the command wants a package of the name vllm, and builds for CPUs have other ones.
        self.command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        self.command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "256", "--enforce-eager"]
        self.command += ["--enable-scale-out", "--logprobs-mode", "processed_logprobs", *words]
        self.log = log
        # A virtual machine may name AMX among what its CPU can do, and end the process that uses it.
        self.site = log.parent / "site"
        self.site.mkdir(exist_ok=True)
        (self.site / "sitecustomize.py").write_text("import torch\ntorch.cpu._is_amx_tile_supported = lambda: False\n")
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            environment = os.environ | ENVIRONMENT | {"PYTHONPATH": str(self.site)}
            self.process = subprocess.Popen(
                self.command,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        """All of its processes, by SIGKILL."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait(self) -> None:
        for _ in range(300):
            try:
                with urllib.request.urlopen(f"{self.address}/health", timeout=5):
                    return
            except OSError:
                assert self.process.poll() is None, self.log.read_text()[-3000:]
                time.sleep(1)
        raise AssertionError("vLLM does not start")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose heads are of a size that vLLM knows, and which has learnt to stop."""
    folder = tmp_path_factory.mktemp("base") / "untrained"
    folder.mkdir()
    sizes = SIZES | {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    write_tokenizer(train_tokenizer([text for row in sums(40) for text in row], SIZES["vocab_size"]), folder)
    write_model(sizes, 1, folder)
    shutil.copytree(folder, folder.parent / "tied")
    # On a CPU, vLLM 0.32 keeps the output head of a model whose embeddings are tied.
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.save_pretrained(folder)
    turns = [("user", question, "assistant", "#" * (1 + i % 5)) for i, (question, _, _) in enumerate(sums(16))]
    rows = [{"messages": [{"role": r, "content": c} for r, c in (t[:2], t[2:])]} for t in turns]
    data = write_rows(folder.parent / "rows.jsonl", rows)
    run("sft", folder, data, folder.parent / "model", "--max_steps", "12", "--assistant_only_loss")
    return folder.parent / "model"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts") / "rows.jsonl")


@pytest.fixture
def serve(base: Path, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*words: str) -> Server:
        servers.append(Server(base, tmp_path / "vllm.log", *words))
        servers[-1].wait()
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


def words_for(server: Server) -> list[str]:
    return ["--use_vllm", "--vllm_mode", "server", "--vllm_server_base_url", server.address]


def log_lines(state: dict[str, Any]) -> list[dict[str, Any]]:
    return [line for line in state["log_history"] if "loss" in line]


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-4), ("bfloat16", 0.15)])
def test_log_probs_of_the_served_model_are_the_trainers_in_twenty_steps(
    dtype: str, bound: float, serve: Callable[..., Server], base: Path, prompts: Path, tmp_path: Path
) -> None:
    """Each step trains on what the weights after the step before it have written; with those before that, the
    difference would be some tenths."""
    server = serve("--dtype", dtype)
    out = tmp_path / "out"
    flags = ["--max_steps", "20", "--learning_rate", "5e-3", "--max_completion_length", "24", "--dtype", dtype]
    state = run_policy("grpo", base, prompts, out, *words_for(server), *flags)
    lines = log_lines(state)
    assert len(lines) == 20
    for line in lines:
        names = (f"{DIFFERENCE}/mean", f"{DIFFERENCE}/max", "sampling/importance_sampling_ratio/mean", "reward")
        print(dtype, line["step"], *(f"{line[name]:.3g}" for name in names))
    assert max(line[f"{DIFFERENCE}/max"] for line in lines) < bound
    # the weights in between did move: the served model is not the first one
    first = state["log_history"][0]["entropy"]
    assert any(abs(line["entropy"] - first) > 0.05 for line in lines)


def test_a_server_that_keeps_weights_is_found_out(
    base: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """vLLM's build for CPUs packs the output head, and with tied embeddings never packs it again: every update would
    leave the first one in place."""
    tied, command = base.parent / "tied", list[str]()
    server = Server(tied, tmp_path / "vllm.log", "--dtype", "float32")
    try:
        server.wait()
        run_policy("grpo", tied, prompts, tmp_path / "out", *words_for(server), starter=command.extend)
        assert main(command) == 2
    finally:
        server.kill()
    assert "vLLM keeps some of its weights when it is sent others" in capsys.readouterr().err


def test_killed_in_the_middle(
    serve: Callable[..., Server], base: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed and started again: the run goes on with the right weights. Killed for good: it ends with a checkpoint,
    from which the same command goes on when the server is back."""
    server = serve("--dtype", "float32")
    flags = ["--max_completion_length", "24", "--log_completions", "--num_completions_to_print", "0"]
    flags += ["--learning_rate", "5e-3", "--vllm_server_timeout", "200"]

    def kill_after(step: int, out: Path, again: bool) -> threading.Thread:
        def work() -> None:
            while not (out / "completions" / f"completions_{step:05d}.parquet").is_file():
                time.sleep(0.01)
            server.kill()
            if again:
                server.start()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    thread = kill_after(4, tmp_path / "back", again=True)
    state = run_policy("grpo", base, prompts, tmp_path / "back", *words_for(server), *flags, "--max_steps", "10")
    thread.join()
    error = capsys.readouterr().err
    assert "is lost" in error and "it gets the weights of now" in error
    assert len(log_lines(state)) == 10
    assert max(line[f"{DIFFERENCE}/max"] for line in log_lines(state)) < 1e-4

    thread, out = kill_after(4, tmp_path / "gone", again=False), tmp_path / "gone"
    flags[-1] = "3"
    command: list[str] = []
    words = [*words_for(server), *flags, "--max_steps", "10"]
    run_policy("grpo", base, prompts, out, *words, starter=command.extend)
    assert main(command) == 1
    thread.join()
    error = capsys.readouterr().err
    assert "stopped after step" in error and "the same command goes on from there" in error
    assert len(list(out.glob("checkpoint-*"))) == 1
    server.start()
    server.wait()
    assert main(command) == 0
    state = json.loads((out / "trainer_state.json").read_text())
    assert [line["step"] for line in log_lines(state)] == list(range(1, 11))
    assert max(line[f"{DIFFERENCE}/max"] for line in log_lines(state)) < 1e-4


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_in_the_trainers_process(method: str, base: Path, prompts: Path, tmp_path: Path) -> None:
    """The environment of vLLM is lent this one's packages, its own first."""
    command: list[str] = []
    flags = ["--use_vllm", "--max_steps", "5", "--max_completion_length", "24", "--vllm_max_model_length", "128"]
    flags += ["--save_strategy", "no", "--temperature", "0.7"]
    run_policy(method, base, prompts, tmp_path / "out", *flags, starter=command.extend)
    paths = [str(Path(__file__).resolve().parents[1] / "src"), sysconfig.get_paths()["purelib"]]
    code = f"import sys; sys.path += {paths}; from posttrain.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | ENVIRONMENT
    done = subprocess.run([PYTHON, "-c", code, *command], env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    lines = log_lines(json.loads((tmp_path / "out" / "trainer_state.json").read_text()))
    assert len(lines) == 5
    if method == "grpo":
        print("colocated", [f"{line[f'{DIFFERENCE}/max']:.3g}" for line in lines])
        assert max(line[f"{DIFFERENCE}/max"] for line in lines) < 1e-4
    print(done.stderr[-1500:], file=sys.stderr)
