"""`posttrain env`: complete, without names and secrets, and not to be stopped by what is broken."""

import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from posttrain import environment
from posttrain.cli import main
from posttrain.environment import memory, report


def table(text: str) -> dict[str, str]:
    """First and second column of every row of the report."""
    rows = re.findall(r"^\| (.*?) *\| (.*?) *\|$", text, flags=re.MULTILINE)
    return {name.strip(): value for name, value in rows if name.strip()}


def test_versions_machine_and_features(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    text = capsys.readouterr().out
    rows = table(text)
    for name in ("posttrain", "transformers", "accelerate", "datasets", "peft", "dvc"):
        assert rows[name] == importlib.metadata.version(name)
    assert rows["torch"].startswith(torch.__version__)
    assert rows["Python"].startswith(platform.python_version())
    assert f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores" in rows["CPU"]
    assert rows["several processes"].startswith("yes: ")
    assert re.findall(r"^#### (.*)", text, flags=re.MULTILINE)[:3] == ["Machine", "Packages", "What works here"]


def test_other_words_are_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--json"]) == 2
    assert "--json: `posttrain env` takes no words" in capsys.readouterr().err
    assert main(["env", "--help"]) == 0


def test_no_name_and_no_secret_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    home, user, host = "/home/carol", "carol", "carols-laptop"
    monkeypatch.setattr(Path, "home", lambda: Path(home))
    monkeypatch.setattr("getpass.getuser", lambda: user)
    monkeypatch.setattr(platform, "node", lambda: host)
    variables = {
        "HF_HOME": f"{home}/hf",
        "HF_HUB_CACHE": "/data/carol/hub",
        "HF_ENDPOINT": "https://carol:s3cret@hub.example",
        "HF_TOKEN": "hf_s3cret",
        "WANDB_API_KEY": "s3cret",
        "OPENAI_API_KEY": "s3cret",
        "POSTTRAIN_TOKEN": "s3cret",
        "HTTPS_PROXY": "http://carol:s3cret@proxy",
        "NCCL_SOCKET_IFNAME": f"eth0,{host}",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "OMP_NUM_THREADS": "3",
        "HF_HUB_OFFLINE": "",
        "CAROLS_OWN": "s3cret",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    text = report()
    for private in ("s3cret", user, host, home):
        assert private not in text
    rows = table(text)
    assert rows["HF_HOME"] == "~/hf"
    assert rows["HF_HUB_CACHE"] == "/data/USER/hub"
    assert rows["HF_ENDPOINT"] == "https://hub.example"
    assert rows["NCCL_SOCKET_IFNAME"] == "eth0,HOST"
    assert (rows["CUDA_VISIBLE_DEVICES"], rows["OMP_NUM_THREADS"]) == ("0,1", "3")
    assert {
        rows[name] for name in ("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "POSTTRAIN_TOKEN", "HTTPS_PROXY")
    } == {"set"}
    assert "CAROLS_OWN" not in rows


def test_what_is_missing_or_broken_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def some_version(name: str) -> str:
        if name == "peft":
            raise importlib.metadata.PackageNotFoundError(name)
        if name == "datasets":
            raise KeyError("no metadata")
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", some_version)
    monkeypatch.setitem(sys.modules, "torch", None)  # import torch raises
    monkeypatch.setattr("getpass.getuser", lambda: (_ for _ in ()).throw(OSError()))
    rows = table(report())
    assert rows["peft"] == "not installed"
    assert rows["datasets"] == "broken: KeyError"
    assert "cannot be imported: ModuleNotFoundError" in rows["torch"]
    assert rows["training"] == "no: torch cannot be imported"


def test_a_broken_driver_ends_its_own_table_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(index: int) -> None:
        raise RuntimeError("CUDA driver error: out of order")

    torch_with_gpu = fake_torch(9)
    torch_with_gpu.cuda.get_device_properties = broken
    monkeypatch.setattr(environment, "_import_torch", lambda: (torch_with_gpu, ""))
    rows = table(report())
    assert rows["broken"] == "RuntimeError: CUDA driver error: out of order"
    assert rows["transformers"] == importlib.metadata.version("transformers")


def fake_torch(major: int) -> Any:
    """A torch with one GPU of 80 GiB."""
    about = SimpleNamespace(name="A GPU", total_memory=80 * 2**30, major=major, minor=0)
    cuda = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 1,
        get_device_properties=lambda index: about,
        get_device_capability=lambda: (major, 0),
        is_bf16_supported=lambda including_emulation: major >= 8,
    )
    return SimpleNamespace(cuda=cuda, version=SimpleNamespace(cuda="13.0", hip=None), distributed=torch.distributed)


def test_a_gpu_and_what_it_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for major, works in ((9, "yes"), (7, "no: ")):
        monkeypatch.setattr(environment, "_import_torch", lambda major=major: (fake_torch(major), ""))
        rows = table(report())
        assert rows["GPU 0"] == f"A GPU, 80.0 GiB, capability {major}.0"
        assert rows["bf16"].startswith(works)
        assert rows["variable-length attention"].startswith(works)
        assert rows["fp16"] == "yes"
        assert rows["torch"].endswith("CUDA 13.0")
    assert memory(fake_torch(9)) == (80 * 2**30, "the GPU")
    assert memory(None)[1] == "this machine"
