"""The manual's commands: as they stand, with the hub's names; and the same with a local model and local data."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_content import ALICE
from hub_server import Hub
from hub_session import STAYS_HERE, Command
from manual import COMMANDS, words_of, write_manual
from safetensors.torch import load_file

from posttrain.cli import main
from posttrain.config import METHODS, parse_command_line
from posttrain.launch import launcher_command, launcher_environment

ROOT = Path(__file__).resolve().parent.parent
LOGGED = {
    "sft": ["mean_token_accuracy"],
    "dpo": ["rewards/margins"],
    "grpo": ["rewards/accuracy_reward/mean", "completions/mean_length"],
    "rloo": ["rewards/bert-base-multilingual-uncased-sentiment/mean", "kl"],
    "reward": ["accuracy", "margin"],
}


def check_run(name: str, folder: Path) -> list[dict[str, Any]]:
    """What the command has left: a model or an adapter that has moved, the method's metrics, an evaluation."""
    words = words_of(name)
    method = words[0]
    is_lora = "--use_peft" in words
    assert (folder / ("adapter_model.safetensors" if is_lora else "model.safetensors")).is_file()
    assert (folder / "model.safetensors").is_file() != is_lora
    history: list[dict[str, Any]] = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    trained = [line for line in history if "train_loss" in line]
    assert len(trained) == 1 and trained[0]["train_loss"] == trained[0]["train_loss"]
    if "--eval_strategy" in words:
        assert any("eval_loss" in line and f"eval_{LOGGED[method][0]}" in line for line in history)
    return history


@pytest.mark.parametrize("name", COMMANDS)
def test_the_manual_s_commands_as_they_stand(name: str, hub: Hub, command: Command, tmp_path: Path) -> None:
    done = command(*words_of(name), "--logging_steps", "1", token=ALICE)
    assert done.code == 0, done.output
    words = words_of(name)
    folder = words[words.index("--output_dir") + 1]
    history = check_run(name, tmp_path / folder)
    assert all(metric in line for line in history if "loss" in line for metric in LOGGED[words[0]])
    repository = hub.repositories.pop(f"models/alice/{folder}", None)
    assert (repository is not None) == ("--push_to_hub" in words)
    if repository is not None:
        assert repository.messages()[-1] == "End of training"
        files = [path for path in (tmp_path / folder).iterdir() if path.is_file() and path.name not in STAYS_HERE]
        here = {path.name: path.read_bytes() for path in files}
        assert repository.files() == here
        assert "training_args.bin" not in here and "README.md" in here


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that holds the stand-ins under their names, as the current folder: a name is then a path."""
    folder = tmp_path_factory.mktemp("manual")
    for name, where in write_manual(folder / "made").items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.move(where, folder / name)
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_manual_s_commands_on_local_models_and_data(name: str, local: Path, tmp_path: Path) -> None:
    """The reward model's name has a task before it, and is a path all the same."""
    words = [word for word in words_of(name) if word != "--push_to_hub"]
    assert main([*words, "--output_dir", str(tmp_path / "out"), "--disable_tqdm", "true"]) == 0
    check_run(name, tmp_path / "out")
    if "--use_peft" in words:
        settings = json.loads((tmp_path / "out/adapter_config.json").read_text())
        assert (settings["r"], settings["lora_alpha"]) == (32, 16)
        assert settings["task_type"] == ("SEQ_CLS" if words[0] == "reward" else "CAUSAL_LM")
        weights = load_file(tmp_path / "out/adapter_model.safetensors")
        assert any(tensor.any() for key, tensor in weights.items() if "lora_B" in key)  # zero before training


CONFIG = """\
model_name_or_path: Qwen/Qwen2-0.5B
dataset_name: trl-lib/Capybara
learning_rate: 2.0e-5
num_train_epochs: 1
packing: true
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
eos_token: <|im_end|>
eval_strategy: steps
eval_steps: 100
output_dir: Qwen2-0.5B-SFT
report_to: trackio
"""


def test_a_config_file_and_flags_on_top(command: Command, tmp_path: Path) -> None:
    """Command 9, twice: the rate at the first step is that of the file, and that of the flag."""
    pytest.importorskip("trackio")
    (tmp_path / "sft_config.yaml").write_text(CONFIG)
    for flags, rate in (([], 2e-5), (["--learning_rate", "1.0e-5", "--resume_from_checkpoint", "false"], 1e-5)):
        done = command("sft", "--config", "sft_config.yaml", *flags, "--logging_steps", "1")
        assert done.code == 0, done.output
        history = json.loads((tmp_path / "Qwen2-0.5B-SFT/trainer_state.json").read_text())["log_history"]
        assert history[0]["learning_rate"] == pytest.approx(rate)
    with contextlib.closing(sqlite3.connect(Path(os.environ["TRACKIO_DIR"]) / "huggingface.db")) as runs:
        rows = [json.loads(text) for (text,) in runs.execute("SELECT metrics FROM metrics ORDER BY id")]
    assert [row["train/learning_rate"] for row in rows if "train/learning_rate" in row] == [2e-5, 1e-5]


ACCELERATE = """\
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
num_processes: 3
mixed_precision: bf16
"""


@pytest.mark.parametrize("name", ["single_gpu", "multi_gpu", "fsdp1", "fsdp2", "zero1", "zero2", "zero3"])
def test_accelerate_configs_are_found(name: str, tmp_path: Path) -> None:
    """Command 10: `--num_processes 4 --accelerate_config NAME`."""
    (tmp_path / "sft_config.yaml").write_text(CONFIG)
    words = ["--config", str(tmp_path / "sft_config.yaml"), "--accelerate_config", name]
    count = [] if name == "single_gpu" else ["--num_processes", "4"]
    config, launch = parse_command_line("sft", [*words, *count])
    assert (launch.accelerate_config, config.report_to) == (name, "trackio")
    if count:
        command = launcher_command(launch, ["script.py"])
        assert command[command.index("--num_processes") + 1] == "4"
        assert command[command.index("--config_file") + 1].endswith(f"{name}.yaml")


def test_a_file_of_accelerate_config(tmp_path: Path) -> None:
    """Command 10: `--config_file` with what `accelerate config` writes."""
    (tmp_path / "sft_config.yaml").write_text(CONFIG)
    (tmp_path / "mine.yaml").write_text(ACCELERATE)
    words = ["--config", str(tmp_path / "sft_config.yaml"), "--config_file", str(tmp_path / "mine.yaml")]
    _, launch = parse_command_line("sft", words)
    command = launcher_command(launch, ["script.py"])
    assert command[command.index("--config_file") + 1] == str(tmp_path / "mine.yaml")
    assert int(launcher_environment(launch)["OMP_NUM_THREADS"]) >= 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("flag", ["bf16", "tf32", "gradient_checkpointing"])
def test_switches_bare_negated_and_with_a_value(method: str, flag: str) -> None:
    """Command 11."""
    common = ["--model_name_or_path", "m", "--dataset_name", "d", "--dataset_config", "main"]
    common += ["--reward_funcs", "accuracy_reward"] if method in ("grpo", "rloo") else []
    expected = {f"--{flag}": True, f"--no_{flag}": False, f"--{flag}=false": False, f"--{flag} true": True}
    for text, value in expected.items():
        config, _ = parse_command_line(method, [*common, *text.split()])
        assert (getattr(config, flag), config.dataset_config) == (value, "main")


def test_packing_and_sampling_switches() -> None:
    """Command 11: what only some methods have."""
    common = ["--model_name_or_path", "m", "--dataset_name", "d"]
    for words, value in ((["--packing"], True), (["--no_packing"], False), (["--packing", "false"], False)):
        assert parse_command_line("sft", [*common, *words])[0].packing is value
    for tracker in ("tensorboard", "wandb", "trackio", "mlflow", "none"):
        assert parse_command_line("sft", [*common, "--report_to", tracker])[0].report_to == tracker
    words = ["--temperature", "0.7", "--top_p", "0.9", "--reward_funcs", "accuracy_reward"]
    for method in ("grpo", "rloo"):
        config: Any = parse_command_line(method, [*common, *words])[0]
        assert (config.temperature, config.top_p) == (0.7, 0.9)
