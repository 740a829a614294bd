"""GRPO and RLOO with completions from a server: weights in step, a server that is killed, a command that goes on. The
server is a process of its own that speaks vLLM's language (vllm_stand_in.py); test_vllm_real.py has vLLM itself."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import run_policy, write_base, write_prompts

from posttrain.cli import main

STAND_IN = Path(__file__).with_name("vllm_stand_in.py")
DIFFERENCE = "sampling/sampling_logp_difference"
TWO_GENERATIONS_A_STEP = ["--gradient_accumulation_steps", "2", "--steps_per_generation", "1", "--max_steps", "4"]
TWO_GENERATIONS_A_STEP += ["--eval_strategy", "steps", "--eval_steps", "2", "--test_split_size", "2"]
TWO_GENERATIONS_A_STEP += ["--eval_temperature", "0", "--num_generations_eval", "1"]
# Completions: those that try the server before the first step, and those of an evaluation.
TRIED, EVALUATED = 4, 2


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts") / "rows.jsonl")


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    zygote = Zygote()
    yield zygote
    zygote.close()


class Zygote:
    """A process that has imported everything, and becomes a server when it is told so."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(STAND_IN)], stdin=subprocess.PIPE, text=True, env=environment
        )

    def start(self, model: Path, lives: list[int], deaf: bool = False, pause: float = 0.0) -> str:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        assert self.process.stdin is not None
        order = {"model": str(model), "port": port, "lives": lives, "deaf": deaf, "pause": pause}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return f"http://127.0.0.1:{port}"

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()  # it ends, and its servers with it
        self.process.wait()


def words_for(address: str) -> list[str]:
    words = ["--use_vllm", "--vllm_mode", "server", "--vllm_server_base_url", address, "--vllm_server_timeout", "120"]
    return [*words, "--learning_rate", "1e-2"]


def log_lines(out: Path) -> list[dict[str, Any]]:
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [line for line in history if "loss" in line]


def largest_difference(out: Path) -> float:
    return max(line[f"{DIFFERENCE}/max"] for line in log_lines(out))


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


def test_the_server_has_the_weights_of_each_step(zygote: Zygote, base: Path, prompts: Path, tmp_path: Path) -> None:
    """Adapters merged: what it says of its own completions is what the trainer says of them, whose weights move."""
    extra = ["--use_peft", "--lora_r", "4", "--lora_target_modules", "all-linear", "--temperature", "0.8"]
    run_policy("grpo", base, prompts, tmp_path / "out", *words_for(zygote.start(base, [0])), *extra)
    assert largest_difference(tmp_path / "out") < 1e-5
    for line in log_lines(tmp_path / "out"):
        assert line["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-4)
        assert line["sampling/importance_sampling_limited"] == 0
    assert not (tmp_path / "out" / ".vllm-weights").exists()


def test_a_server_that_keeps_its_weights_is_found_out(
    zygote: Zygote, base: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command: list[str] = []
    words = words_for(zygote.start(base, [0], deaf=True))
    run_policy("grpo", base, prompts, tmp_path / "out", *words, starter=command.extend)
    assert main(command) == 2
    assert "vLLM keeps some of its weights when it is sent others (log-probs" in capsys.readouterr().err


@pytest.fixture(scope="module")
def undisturbed(zygote: Zygote, base: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run_policy("grpo", base, prompts, out, *words_for(zygote.start(base, [0])), *TWO_GENERATIONS_A_STEP)
    return out


def test_a_server_that_is_killed_and_comes_back(
    undisturbed: Path, zygote: Zygote, base: Path, prompts: Path, tmp_path: Path
) -> None:
    """Killed in the second step's completions, and twice in the third's. The new process has the first weights, so it
    gets those of now, and draws what the old one would have."""
    lives = [TRIED + 16 + 5, 11 + EVALUATED + 5, 2, 0]
    words = [*words_for(zygote.start(base, lives)), *TWO_GENERATIONS_A_STEP]
    run_policy("grpo", base, prompts, tmp_path / "out", *words)
    assert weights(tmp_path / "out") == weights(undisturbed)
    assert largest_difference(tmp_path / "out") < 1e-5


def test_a_server_that_is_lost_ends_the_run_with_its_checkpoint(
    undisturbed: Path,
    zygote: Zygote,
    base: Path,
    prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It dies in the second of two generations that make up the third step: the checkpoint is that of the second step,
    with nothing of the third in it, and the same command goes on to the same bytes and the same lines."""
    command: list[str] = []
    address = zygote.start(base, [TRIED + 2 * 16 + EVALUATED + 8 + 3])
    words = [*words_for(address), *TWO_GENERATIONS_A_STEP, "--vllm_server_timeout", "1.5"]
    run_policy("grpo", base, prompts, tmp_path / "out", *words, starter=command.extend)
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "is lost: " in error and "stopped after step 2 of 4; kept in" in error and "same command goes on" in error
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]
    command[command.index(address)] = zygote.start(base, [0])
    command[-1] = "20"
    assert main(command) == 0
    assert weights(tmp_path / "out") == weights(undisturbed)
    assert log_lines(tmp_path / "out") == log_lines(undisturbed), "what the third step had counted is counted once"


def test_ctrl_c_while_a_lost_server_is_waited_for(
    zygote: Zygote, base: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It means to stop: nobody waits for the server any longer, and the step before it is kept."""
    command: list[str] = []
    words = [*words_for(zygote.start(base, [TRIED + 8 + 3])), "--log_completions", "--num_completions_to_print", "0"]
    run_policy("grpo", base, prompts, tmp_path / "out", *words, starter=command.extend)

    def press() -> None:
        while not (tmp_path / "out/completions/completions_00001.parquet").is_file():
            time.sleep(0.01)
        time.sleep(0.7)  # the first step is done, and the server is waited for
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    began = time.monotonic()
    assert main(command) == 128 + signal.SIGINT
    thread.join()
    assert time.monotonic() - began < 15, "it has waited for the server"
    assert "stopped by SIGINT after step 1 of 3; kept in" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-1"]


def test_rloo_takes_its_old_log_probs_from_the_trainer(
    zygote: Zygote, base: Path, prompts: Path, tmp_path: Path
) -> None:
    """With several steps a generation ratios are of the trainer's own numbers: the first step's are exactly 1."""
    extra = ["--steps_per_generation", "2", "--max_steps", "2", "--epsilon", "1e-6", "--top_p", "0.9", "--beta", "0.1"]
    run_policy("rloo", base, prompts, tmp_path / "out", *words_for(zygote.start(base, [0])), *extra)
    first, second = (line["clip_ratio/region_mean"] for line in log_lines(tmp_path / "out"))
    assert first == 0 < second
    assert f"{DIFFERENCE}/max" not in log_lines(tmp_path / "out")[0]


@pytest.mark.skipif("POSTTRAIN_VLLM_PYTHON" not in os.environ, reason="half a minute: where vLLM is tried")
def test_two_processes_with_spread_weights(zygote: Zygote, base: Path, prompts: Path, tmp_path: Path) -> None:
    """The first process gathers and sends them, each asks for its own completions: the steps of one process."""
    for name, words in (
        ("one", ["--per_device_train_batch_size", "8"]),
        ("two", ["--per_device_train_batch_size", "4", "--num_processes", "2", "--accelerate_config", "fsdp2"]),
    ):
        address = zygote.start(base, [0])
        run_policy("grpo", base, prompts, tmp_path / name, *words_for(address), *words, "--max_steps", "2")
    assert largest_difference(tmp_path / "two") < 1e-5
    for one, two in zip(log_lines(tmp_path / "one"), log_lines(tmp_path / "two"), strict=True):
        for metric in ("loss", "grad_norm", "reward", "entropy", "sampling/importance_sampling_ratio/mean"):
            assert two[metric] == pytest.approx(one[metric], rel=2e-4, abs=1e-5)
