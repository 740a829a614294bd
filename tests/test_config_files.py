"""Flags from YAML files and from sections of params.yaml."""

from pathlib import Path

import pytest
import yaml
from helpers_flags import message, parse

from posttrain.config import SFTConfig, from_mapping, parse_command_line
from posttrain.config.common import DatasetSource
from posttrain.errors import UserError


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_yaml_file_with_flags_on_top(tmp_path: Path) -> None:
    file = write(
        tmp_path / "sft.yaml",
        "model_name_or_path: org/model\ndataset_name: org/rows\nlearning_rate: 1e-4\nweight_decay: 1E-2\n"
        "eval_strategy: no\nrun_name: 2024-01-01\nmax_length: null\npacking: false\nreport_to: trackio\nseed: 010\n"
        "num_processes: 4\naccelerate_config: zero2\nenv:\n  A_NAME: 1\n  ANOTHER: no\n",
    )
    config, launch = parse_command_line("sft", ["--config", file, "--learning_rate", "1.0e-5", "--num_processes", "2"])
    assert isinstance(config, SFTConfig)
    assert (config.learning_rate, config.weight_decay, config.eval_strategy) == (1e-5, 0.01, "no")
    assert (config.run_name, config.max_length, config.report_to, config.seed) == ("2024-01-01", None, "trackio", 10)
    assert (launch.num_processes, launch.accelerate_config) == (2, "zero2")
    assert launch.env == {"A_NAME": "1", "ANOTHER": "no"}
    assert {"learning_rate", "max_length", "packing"} <= config.explicit
    assert "num_processes" not in config.explicit


def test_a_mixture_of_datasets(tmp_path: Path) -> None:
    file = write(
        tmp_path / "mix.yaml",
        "model_name_or_path: m\ndatasets:\n- path: a/b\n  fraction: 0.5\n"
        "- path: c.jsonl\n  columns: [text]\n  fraction: 1\n",
    )
    config = parse_command_line("sft", ["--config", file])[0]
    assert config.datasets == [
        DatasetSource(path="a/b", fraction=0.5),
        DatasetSource(path="c.jsonl", columns=["text"], fraction=1.0),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max_steps: 1\nseed: 2\nmax_steps: 3\n", "line 3: the key max_steps already stands in line 1"),
        ("max_steps: [1\n", "line 2: not YAML"),
        ("max_steps: !!python/object/apply:os.getcwd []\n", "line 1: not YAML"),
        ("", "the file is empty"),
        ("- 1\n", "it holds a list"),
        ("bta: 1\n", ": bta: no such key; did you mean beta?"),
        ("beta: high\n", ": beta: 'high' is not a number"),
        ("beta: true\n", ": beta: True is not a number"),
        ("run_name: 3\n", ": run_name: 3 is not text or none"),
        ("max_length: 3.0\n", ": max_length: 3.0 is not a whole number or none"),
        ("max_steps:\n", ": max_steps: None is not a whole number"),
        ("warmup_ratio: 0.1\n", ": warmup_ratio is not available: use warmup_steps"),
        ("config: other.yaml\n", ": config: no such key"),
        ("env: 3\n", ": env: wanted variables and their values"),
        ("loss_type: exo_pair\n", ": loss_type exo_pair needs label_smoothing above 0"),
        ("datasets: [{pth: x}]\n", ": datasets[0].pth: no such key; did you mean path?"),
        ("datasets: [{split: x}]\n", ": datasets[0]: path is missing"),
        ("datasets: [x]\n", ": datasets[0]: 'x' is not a mapping of path, name, "),
        ("num_processes: 0\n", ": num_processes: 0 is too small"),
    ],
)
def test_mistakes_in_a_yaml_file_are_named(text: str, expected: str, tmp_path: Path) -> None:
    file = write(tmp_path / "dpo.yaml", text)
    assert message("dpo", "--config", file).startswith(file)
    assert expected in message("dpo", "--config", file)


def test_unreadable_yaml_files_are_named(tmp_path: Path) -> None:
    assert "cannot be read (No such file or directory)" in message("sft", "--config", str(tmp_path / "no.yaml"))
    (tmp_path / "latin.yaml").write_bytes(b"run_name: caf\xe9\n")
    assert "not UTF-8 text (byte 13)" in message("sft", "--config", str(tmp_path / "latin.yaml"))


def test_a_section_of_params_is_named_in_full() -> None:
    good = {"model_name_or_path": "m", "dataset_name": "d", "beta": "1e-1"}
    assert from_mapping("dpo", good, "params.yaml: dpo").beta == 0.1
    for mapping, expected in [
        ({"bta": 1}, "params.yaml: dpo.bta: no such key; did you mean beta?"),
        ({"beta": "x"}, "params.yaml: dpo.beta: 'x' is not a number"),
        ({"loss_type": ["robust"], "label_smoothing": 0.7}, "params.yaml: dpo: loss_type robust needs label_smoothing"),
        ({"num_processes": 2}, "params.yaml: dpo.num_processes: no such key"),
    ]:
        with pytest.raises(UserError) as caught:
            from_mapping("dpo", good | mapping, "params.yaml: dpo")
        assert str(caught.value).startswith(expected)


def test_the_flags_can_be_written_to_a_file_without_secrets() -> None:
    config = parse("sft", "--hub_token", "hf_secret", "--max_steps", "5")
    mapping = config.to_mapping()
    assert "hf_secret" not in yaml.safe_dump(mapping)
    again = from_mapping("sft", {name: value for name, value in mapping.items() if value is not None}, "run.yaml")
    assert again.to_mapping() == mapping
