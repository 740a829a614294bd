"""benchmarks/gpu.py: every part of it on a CPU with a tiny model, its arithmetic, and what becomes of failed parts."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu_parts import parts, profiling, rollouts, settings, steps, tables
from benchmarks.gpu_parts.material import make_model

ROOT = Path(__file__).resolve().parents[1]
COMPILED = "sft, compiled"  # takes its time: tests/test_compiled.py


@pytest.fixture(scope="module")
def gpu() -> Any:
    """The script, which is started by its path."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module("gpu")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def test_every_part_runs_on_a_cpu(tmp_path: Path, gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("posttrain.training.save", lambda *_: pytest.fail("a run has written its model"))
    names = [name for name in parts.BUDGETS if name != COMPILED]
    parts.work(tmp_path, names, tiny=True, peer=None)
    states = gpu.states_of(gpu.read(tmp_path))
    assert {name: part.get("traceback") for name, part in states.items() if part["state"] != "done"} == {}
    assert list(states) == names
    found = {name: part["found"] for name, part in states.items()}
    assert all(found[name]["steps"] == settings.TINY.steps for name in steps.SFT_WAYS if name != COMPILED)
    whole, frozen = found["sft"], found["sft, lora"]
    assert whole["FLOP/s"] == pytest.approx(whole["operations a token"] * whole["tokens a second"])
    assert whole["operations a token"] - frozen["operations a token"] == 2 * settings.TINY.num_parameters
    for method in ("dpo", "reward", "grpo", "rloo"):
        profile = found[method]["posttrain"]["profile"]
        assert profile["kernels"] > 0 and 0 < profile["busy"] <= 1
    assert found["rollouts"]["captured graphs"]["tokens a second"] > 0
    text = tables.page({"title": "Tiny", "facts": {}, "parts": states})
    assert all(f"| {name}" in text for name in ("sft", "dpo, posttrain", "attention: documents", "captured graphs"))
    assert "Not measured" not in text


def test_what_fails_is_told_of_and_the_others_go_on(tmp_path: Path, gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def part(name: str, *_: Any) -> Any:
        if name == "engine":
            raise ValueError("no such kernel")
        return lambda: {"steps": 1}

    monkeypatch.setattr(parts, "_part", part)
    (tmp_path / "material").mkdir()
    parts.work(tmp_path, ["engine", "sft"], tiny=True, peer=None)
    states = gpu.states_of(gpu.read(tmp_path))
    assert [part["state"] for part in states.values()] == ["failed", "done"]
    assert "no such kernel" in states["engine"]["traceback"]
    assert "- engine: failed · ValueError: no such kernel" in tables.page({"title": "", "facts": {}, "parts": states})


# A process that does the first of its parts, and hangs in the next where that is "dpo".
_WORKER = """
import json, sys, time
names, folder = sys.argv[sys.argv.index("--parts") + 1 : -2], sys.argv[-1]
def tell(event, name):
    with open(folder + "/events.jsonl", "a") as file:
        file.write(json.dumps({"event": event, "part": name, "time": time.time(), "found": {}}) + "\\n")
for name in names:
    tell("begin", name)
    if name == "dpo":
        time.sleep(60)
    if name == "grpo":
        sys.exit(3)
    tell("done", name)
"""


def test_a_part_that_hangs_or_takes_the_process_along_is_lost_alone(
    tmp_path: Path, gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "worker.py"
    script.write_text(_WORKER)
    monkeypatch.setattr(gpu, "__file__", str(script))
    monkeypatch.setattr(gpu, "budget_of", lambda *_: 0.5)
    names = ["sft", "dpo", "reward", "grpo", "rloo"]
    args = Namespace(parts=names, tiny=False, peer_python=None, to=tmp_path)
    told = gpu.run_parts(tmp_path, args, ends=gpu.time.time() + 60)
    assert [part["state"] for part in told.values()] == [
        "done",
        "ended after 1 s",
        "done",
        "the process ended with code 3",
        "done",
    ]


def test_when_time_is_up_the_rest_is_not_begun(tmp_path: Path, gpu: Any) -> None:
    args = Namespace(parts=["sft", "dpo"], tiny=False, peer_python=None, to=tmp_path)
    assert gpu.run_parts(tmp_path, args, ends=0.0) == {name: {"state": "no time left"} for name in ("sft", "dpo")}


def test_the_script_starts_by_its_path_and_needs_no_library_to_say_what_it_is() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "benchmarks/gpu.py"), "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "8 minutes" in done.stdout
    assert "torch" not in done.stderr  # which the working process alone loads


def test_without_a_gpu_it_names_the_way_out(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit) as end:
        gpu.parse_arguments()
    assert end.value.code == 2 and "--tiny" in capsys.readouterr().err.splitlines()[-1]


def test_the_parts_fit_into_eight_minutes() -> None:
    # Loading and a model of a GiB come on top; parts end well before their time unless something is wrong.
    assert sum(parts.budget_of(name, with_peer=False) for name in parts.BUDGETS) <= 600


def test_operations_by_hand() -> None:
    # N = 10, 2 layers of width 3, documents of 4 and 2 tokens: 6·10·6 + 6·2·3·(16 + 4) = 360 + 720.
    assert settings.step_operations(10, [4, 2], 2, 3) == 1080
    assert settings.step_operations(10, [4, 2], 2, 3, frozen=True) == 960


def test_the_shape_is_that_of_qwen2() -> None:
    assert settings.FULL.num_parameters == 494_032_768  # what Qwen2-0.5B has, its embeddings counted once
    model = make_model(settings.TINY, "cpu", torch.float32)
    assert settings.TINY.num_parameters == sum(p.numel() for p in model.parameters())


def test_bytes_of_a_step_of_sampling_by_hand() -> None:
    tiny = settings.TINY  # 2 layers, 2 key heads of 8
    assert settings.token_bytes(tiny, rows=3, held=5.0) == 2 * tiny.num_parameters + 2 * 2 * 2 * 16 * 3 * 5


def test_peaks_are_found_by_the_drivers_names() -> None:
    assert settings.peaks_of("NVIDIA H200") == (989e12, 4.8e12)
    assert settings.peaks_of("NVIDIA H100 80GB HBM3") == (989e12, 3.35e12)
    assert settings.peaks_of("NVIDIA H100 PCIe") == (756e12, 2.0e12)
    assert settings.peaks_of("NVIDIA A100-SXM4-80GB") == (312e12, 2.0e12)
    assert settings.peaks_of("Quadro 9000") is None


def test_time_that_overlaps_counts_once() -> None:
    events = [
        profiling.Event(0, 10, "a"),
        profiling.Event(5, 10, "b"),
        profiling.Event(6, 2, "c"),
        profiling.Event(20, 5, "d"),
    ]
    assert profiling.busy_time(events) == 15 + 5


@pytest.mark.parametrize(
    ("given", "begins"),
    [
        ({"busy": 0.6}, "launch-bound: the GPU waits 40%"),
        ({"busy": 0.95, "memory": 0.7}, "memory-bound: 70%"),
        ({"busy": 0.95, "operations": 0.55, "products": 0.9}, "compute-bound: 55%"),
        ({"busy": 0.95, "operations": 0.2, "products": 0.3}, "memory-bound: 70% of the busy time"),
        ({"busy": 0.95, "operations": 0.2, "products": 0.8}, "bound by its kernels"),
    ],
)
def test_what_holds_a_step_back(given: dict[str, float], begins: str) -> None:
    assert profiling.verdict(**given).startswith(begins)


def test_kernels_are_known_by_their_names() -> None:
    names = {
        "void flash_fwd_kernel<...>": "attention",
        "sm90_xmma_gemm_bf16bf16_bf16f32": "products",
        "nvjet_tst_128x256": "products",
        "void at::native::multi_tensor_apply_kernel<FusedAdam>": "optimizer",
        "Memcpy HtoD (Pinned -> Device)": "copies",
        "void at::native::vectorized_elementwise_kernel": profiling.OTHER,
    }
    assert {name: profiling.kind_of(name) for name in names} == names


def test_transformers_generate_gives_the_tokens_that_are_counted() -> None:
    model = make_model(settings.TINY, "cpu", torch.float32).eval()
    prompts = [torch.arange(3, 3 + n).numpy() for n in (4, 6)]
    assert rollouts.generate(model, prompts, group=2, tokens=3) == 2 * 2 * 3


def test_an_event_is_read_when_its_line_is_whole(tmp_path: Path, gpu: Any) -> None:
    (tmp_path / "events.jsonl").write_text(json.dumps({"event": "start"}) + "\n" + '{"event": "beg')
    assert gpu.read(tmp_path) == [{"event": "start"}]
