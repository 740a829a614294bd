"""`--config_file` with what `accelerate config` writes, and launch options beside it."""

from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType, write_basic_config
from tiny import write_base, write_sft

from posttrain.cli import main
from posttrain.config import parse_command_line
from posttrain.launch import launcher_command, launcher_environment

NEEDED = ["--model_name_or_path", "org/model", "--dataset_name", "org/rows"]
ANSWERS: dict[str, dict[str, Any]] = {
    "cpu": {"distributed_type": DistributedType.MULTI_CPU, "use_cpu": True},
    "gpu": {"distributed_type": DistributedType.MULTI_GPU, "gpu_ids": "all", "main_training_function": "main"},
    "two machines": {
        "distributed_type": DistributedType.MULTI_GPU,
        "num_machines": 2,
        "machine_rank": 1,
        "main_process_ip": "127.0.0.1",
        "main_process_port": 29500,
    },
    "fsdp": {
        "distributed_type": DistributedType.FSDP,
        "fsdp_config": {
            "fsdp_version": 2,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_offload_params": False,
        },
    },
    "deepspeed": {
        "distributed_type": DistributedType.DEEPSPEED,
        "deepspeed_config": {"zero_stage": 2, "offload_optimizer_device": "none", "gradient_accumulation_steps": 1},
    },
}


@pytest.mark.parametrize("suffix", ["yaml", "json"])
@pytest.mark.parametrize("answers", ANSWERS)
def test_files_of_accelerate_config_are_taken(answers: str, suffix: str, tmp_path: Path) -> None:
    settings = {
        "compute_environment": "LOCAL_MACHINE",
        "mixed_precision": "no",
        "num_processes": 4,
        "use_cpu": False,
        "debug": False,
    }
    written = ClusterConfig(**(settings | ANSWERS[answers]))
    path = tmp_path / f"default_config.{suffix}"
    written.to_yaml_file(path) if suffix == "yaml" else written.to_json_file(path)
    _, launch = parse_command_line("sft", [*NEEDED, "--config_file", str(path), "--num_processes", "2"])
    words = launcher_command(launch, ["-m", "posttrain.cli", "sft"])
    arguments = launch_command_parser().parse_args(words[words.index("--config_file") :])
    assert (arguments.config_file, arguments.num_processes) == (str(path), 2)
    assert (arguments.module, arguments.training_script, arguments.training_script_args) == (
        True,
        "posttrain.cli",
        ["sft"],
    )
    # One machine gets a port of its own; where there are several, they have to agree on one.
    assert (arguments.main_process_port == 29500) == (answers == "two machines")
    assert launcher_environment(launch)["OMP_NUM_THREADS"].isdigit()


def test_the_basic_file_of_accelerate_config(tmp_path: Path) -> None:
    path = tmp_path / "default_config.json"
    assert write_basic_config(save_location=str(path))
    _, launch = parse_command_line("sft", [*NEEDED, "--config_file", str(path)])
    assert str(path) in launcher_command(launch, ["script.py"])


@pytest.mark.parametrize(("name", "shared"), [("cp_size", "a row"), ("sp_size", "a row"), ("tp_size", "a layer")])
def test_a_file_that_has_processes_share_a_row_is_refused(
    name: str, shared: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = ANSWERS["fsdp"] | {"parallelism_config": {f"parallelism_config_{name}": 2}}
    settings = {"compute_environment": "LOCAL_MACHINE", "mixed_precision": "no", "use_cpu": False, "debug": False}
    path = tmp_path / "long.yaml"
    ClusterConfig(**(settings | {"num_processes": 2} | answers)).to_yaml_file(path)
    rows = write_sft(tmp_path / "rows.jsonl")
    words = ["--model_name_or_path", str(write_base(tmp_path / "base")), "--dataset_name", str(rows)]
    for command in (["sft"], ["plan", "sft"]):
        assert main([*command, *words, "--config_file", str(path), "--output_dir", str(tmp_path / "out")]) == 2
        told = " ".join(capsys.readouterr().err.split())
        assert f"long.yaml: parallelism_config: {name} 2 has 2 processes share {shared}" in told
        assert "docs/long_sequences.md#context-parallelism" in told
    # As accelerate's own launcher says it to the processes that it starts.
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv(f"PARALLELISM_CONFIG_{name.upper()}", "2")
    assert main(["sft", *words, "--output_dir", str(tmp_path / "out")]) == 2
    assert f"the environment: {name} 2 has" in " ".join(capsys.readouterr().err.split())
