"""Paths in a config are checked before anything is loaded."""

import os
from pathlib import Path

import pytest

from posttrain.config import CommonConfig, DPOConfig, check_paths
from posttrain.config.common import DatasetSource
from posttrain.errors import UserError
from posttrain.hub_access import check_readable

EMPTY = (2).to_bytes(8, "little") + b"{}"  # weights: the length of a header, and a header of nothing


def model_folder(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "qwen2"}')
    (path / "model.safetensors").write_bytes(EMPTY)
    return path


def config_with(tmp_path: Path, **values: object) -> CommonConfig:
    base = {"model_name_or_path": "org/model", "dataset_name": "org/rows", "output_dir": str(tmp_path / "out")}
    return DPOConfig(**(base | values))


def test_a_checkpoint_that_is_to_be_gone_on_from_is_there(tmp_path: Path) -> None:
    config = config_with(tmp_path, resume_from_checkpoint=True)
    with pytest.raises(UserError, match=r"out holds no checkpoint; leave it out to start anew"):
        check_paths(config)
    (tmp_path / "out/checkpoint-5").mkdir(parents=True)
    check_paths(config)


def test_good_paths_pass_and_leave_nothing_behind(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    check_paths(
        config_with(
            tmp_path,
            model_name_or_path=str(model),
            dataset_name=str(tmp_path / "rows.jsonl"),
            metrics_file=str(tmp_path / "metrics/dpo.json"),
            work_dir=str(tmp_path / "work/a"),
            cache_dir=str(tmp_path / "cache"),
        )
    )
    check_paths(config_with(tmp_path))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"model_name_or_path": "{tmp}/modle"}, "_path: {tmp}/modle does not exist; did you mean {tmp}/model?"),
        ({"model_name_or_path": "{tmp}/weightless"}, "{tmp}/weightless holds no weights"),
        ({"ref_model_name_or_path": "{tmp}/empty"}, "ref_model_name_or_path: {tmp}/empty has no config.json"),
        ({"model_name_or_path": "{tmp}/file"}, "{tmp}/file is a file; name the folder that holds the model"),
        ({"dataset_name": "train.jsonl"}, "dataset_name: train.jsonl does not exist; wanted a file or folder of rows"),
        ({"dataset_name": "{tmp}/rows.json"}, "{tmp}/rows.json does not exist; did you mean {tmp}/rows.jsonl?"),
        ({"dataset_name": None, "datasets": [DatasetSource(path="./x")]}, "datasets[0].path: ./x does not exist"),
        ({"chat_template_path": "chat.jinja"}, "chat_template_path: chat.jinja does not exist"),
        ({"resume_from_checkpoint": "{tmp}/out/checkpoint-1"}, "_checkpoint: {tmp}/out/checkpoint-1 does not"),
        ({"output_dir": "{tmp}/file/out"}, "{tmp}/file is not a folder, so {tmp}/file/out cannot"),
        ({"metrics_file": "{tmp}/empty"}, "metrics_file: {tmp}/empty is a folder; name a file in it"),
        ({"plots_file": "{tmp}/file/a.csv"}, "plots_file: {tmp}/file is not a folder"),
    ],
)  # fmt: skip
def test_bad_paths_are_named(values: dict, expected: str, tmp_path: Path) -> None:
    model_folder(tmp_path / "model")
    (model_folder(tmp_path / "weightless") / "model.safetensors").unlink()
    (tmp_path / "empty").mkdir()
    (tmp_path / "rows.jsonl").write_text("{}")
    (tmp_path / "file").write_text("")
    filled = {key: value.format(tmp=tmp_path) if isinstance(value, str) else value for key, value in values.items()}
    with pytest.raises(UserError) as caught:
        check_paths(config_with(tmp_path, **filled))
    assert expected.format(tmp=tmp_path) in str(caught.value)


def test_a_folder_that_refuses_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir()
    locked = tmp_path / "locked"
    locked.chmod(0o555)
    if os.access(locked, os.W_OK):  # root may write anywhere but here
        locked = Path("/proc/self")
    with pytest.raises(UserError, match=f"output_dir: {locked} is not writable .*; name another place"):
        check_paths(config_with(tmp_path, output_dir=str(locked / "out")))


def test_an_adapter_to_a_folder_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path of somebody's may look like a name of the hub, and is asked for once, before anything loads."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(EMPTY)
    about = adapter / "adapter_config.json"
    about.write_text('{"base_model_name_or_path": "../models/base", "peft_type": "LORA"}')
    config = config_with(tmp_path, model_name_or_path=str(adapter), dataset_name=str(adapter))
    with pytest.raises(UserError, match=r"its base \.\./models/base .*is no folder here"):
        check_paths(config)
    about.write_text('{"base_model_name_or_path": "nobody/base", "peft_type": "LORA"}')
    check_paths(config)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"its base nobody/base .*adapter_config.json\): it is not on this machine"):
        check_readable(config)
