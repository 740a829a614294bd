"""The arithmetic of benchmarks/comparison: cells, ratios, verdicts and floors, counted by hand."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psutil
import pytest
import transformers
from test_scaling import SETTING, SHAPE

from posttrain.config import parse_command_line
from posttrain.planning.activations import Saved

ROOT = Path(__file__).resolve().parents[1]
SIDE = {"peak": 400, "before": 100, "start": 5.0, "start_processor": 4.0, "losses": [2.0, 1.0, 1.0]}
SIDE |= {"seconds": [1.0, 2.0, 3.0], "processor": [2.0, 2.0, 2.0], "tokens": [10, 20, 30]}


@pytest.fixture(autouse=True)
def benchmarks_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def record(method: str = "sft", **own: Any) -> dict[str, Any]:
    """A measured cell whose own side is that of the peer, but for some figures."""
    cell = {"method": method, "tuning": "full", "precision": "float32", "data": "gsm8k", "size": "4M"}
    work = {"operations": 4e9, "bytes": 1e9, "sampling_operations": 0.0, "sampling_bytes": 0.0}
    load = {"tokens": 100.0, "targets": 90.0}
    sides = {"peer": copy.deepcopy(SIDE), "own": copy.deepcopy(SIDE) | own}
    about = {"when": "2026-11-28T12:00:00+00:00", "code": "abc", "planned_peak": 220}
    return {"cell": cell, **sides, "work": work, "load": load, **about}


# -- cells


def test_the_default_set_has_each_method_full_and_lora_in_both_precisions() -> None:
    from benchmarks.comparison.cells import chosen

    cells = chosen(None, None, None, None, None)
    small = [(cell.method, cell.tuning, cell.precision) for cell in cells if cell.size == "4M"]
    assert len(small) == len(set(small)) == 6 * 2 * 2
    assert {(cell.method, cell.precision) for cell in cells if cell.size == "27M"} == {
        (method, precision) for method in ("sft", "dpo", "grpo") for precision in ("float32", "bf16")
    }
    assert {cell.data for cell in cells if cell.method in ("reward", "dpo")} == {"hh"}
    assert {cell.data for cell in cells if cell.method not in ("reward", "dpo")} == {"gsm8k"}


def test_all_cells_are_every_product_and_flags_narrow_them() -> None:
    from benchmarks.comparison.cells import chosen

    assert len({cell.name for cell in chosen(None, None, None, None, None, everything=True)}) == 6 * 2 * 2 * 2 * 2
    [cell] = chosen(["dpo"], ["lora"], ["bf16"], ["gsm8k"], ["27M"])
    assert cell.name == "dpo-lora-bf16-gsm8k-27M"
    assert cell.words == "DPO, LoRA, bf16, GSM8K, 27M"


def test_posttrain_reads_the_flags_of_every_cell(tmp_path: Path) -> None:
    from benchmarks.comparison.cells import chosen

    for cell in chosen(None, None, None, None, None, everything=True):
        config, _ = parse_command_line(cell.command, cell.flags(tmp_path, tmp_path / "output"))
        assert config.use_peft == (cell.tuning == "lora")
        assert config.bf16 == (cell.precision == "bf16")
        assert getattr(config, "packing", False) == (cell.method == "packed")
        assert str(config.model_name_or_path).endswith("-reward") == (cell.method == "reward")


def test_a_prompt_of_hh_ends_where_its_last_answer_begins() -> None:
    from benchmarks.comparison.cells import _before_the_answer

    dialogue = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d"
    assert _before_the_answer(dialogue) == "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"


def test_what_changes_a_figure_changes_the_key_of_its_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.comparison import measuring
    from benchmarks.comparison.cells import Cell

    cell, where = Cell("dpo", "full", "bf16", "hh", "4M"), {"cpu": "one", "trl": "1"}
    key = measuring.key_of(cell, where)
    assert key == measuring.key_of(cell, dict(where))
    others = [
        measuring.key_of(dataclasses.replace(cell, tuning="lora"), where),
        measuring.key_of(cell, where | {"trl": "2"}),
        measuring.key_of(cell, where | {"cpu": "other"}),
    ]
    monkeypatch.setattr(measuring, "code_digest", lambda: "edited")
    others.append(measuring.key_of(cell, where))
    assert len({key, *others}) == 5


# -- ratios and verdicts


def test_ratios_are_own_by_peer_step_by_step() -> None:
    from benchmarks.comparison.ratios import losses_apart, ratios

    # 0.5 / 1, 0.5 / 2 and 3 / 3, of which the median is that of the first pair; by sums it would be 4 / 6.
    one = record(seconds=[0.5, 0.5, 3.0], peak=100, start_processor=3.0, losses=[2.0, 1.1, 0.99])
    assert ratios(one) == {"time": 0.5, "memory": 0.25, "start": 0.75}
    assert losses_apart(one) == pytest.approx(0.1)
    assert losses_apart(record("grpo")) is losses_apart(record("packed")) is None


def test_of_several_starts_the_median_of_the_pairs_counts() -> None:
    from benchmarks.comparison.ratios import ratios

    # 2 / 4, 6 / 4 and 9 / 10; the ratio of the medians, 6 / 4, would be that of no pair that has begun together.
    one = record(starts_processor=[2.0, 6.0, 9.0])
    one["peer"]["starts_processor"] = [4.0, 4.0, 10.0]
    assert ratios(one)["start"] == 0.9


def test_a_ratio_is_worse_where_it_is_above_its_baseline_by_more_than_the_tolerance() -> None:
    from benchmarks.comparison.ratios import TOLERANCES, baselines_of, verdicts

    kept = baselines_of({"about": {"cores": 2}, "cells": {"a": record(), "b": record()}})
    assert kept["cells"]["a"] == {"time": 1, "memory": 1, "start": 1}
    almost = 1 + TOLERANCES["memory"]
    now = {
        "a": record(peak=400 * almost, seconds=[0.1] * 3),
        "b": record(peak=400 * almost + 1),
        "c": record(peak=9999),
    }
    found = verdicts(now, kept)
    assert [(one.cell, one.what) for one in found if one.is_worse] == [("b", "memory")]
    assert {one.cell for one in found if one.what != "start"} == {"a", "b"}  # there is no baseline of c


def test_of_starts_the_median_over_the_cells_is_looked_at() -> None:
    from benchmarks.comparison.ratios import baselines_of, verdicts

    kept = baselines_of({"about": {}, "cells": {name: record() for name in "abc"}})
    for seconds, is_worse in (([4, 4, 8], False), ([4, 6, 8], True)):
        now = {name: record(start_processor=one) for name, one in zip("abc", seconds, strict=True)}
        (start,) = (one for one in verdicts(now, kept) if one.what == "start")
        assert (start.baseline, start.now, start.is_worse) == (1, seconds[1] / 4, is_worse)


def test_the_check_fails_for_what_is_worse_or_was_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.comparison.__main__ import CHECKED, report_check
    from benchmarks.comparison.ratios import read_baselines

    baselines = read_baselines()
    about, kept = baselines["about"], baselines["cells"]
    assert {cell.name for cell in CHECKED} <= kept.keys()
    cells = {
        cell.name: record(
            peak=400 * kept[cell.name]["memory"],
            seconds=[kept[cell.name]["time"] * one for one in SIDE["seconds"]],
            start_processor=4 * kept[cell.name]["start"],
        )
        for cell in CHECKED
    }
    assert report_check({"about": about, "cells": cells}) == 0
    first = CHECKED[0].name
    assert "elsewhere" not in capsys.readouterr().out
    worse = {first: cells[first] | {"own": SIDE | {"peak": 10**6}}}
    assert report_check({"about": about | {"cores": 99}, "cells": cells | worse}) == 1
    said = capsys.readouterr().out
    assert f"| {first} | memory |" in said
    assert f"The baselines were measured elsewhere: cores {about['cores']}." in said
    assert report_check({"about": about, "cells": {name: one for name, one in cells.items() if name != first}}) == 1
    assert f"not measured: {first}" in capsys.readouterr().out


def test_nothing_is_compared_without_the_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.comparison import __main__ as comparison

    for name in ("gsm8k_train.jsonl", "gsm8k_model_solutions.jsonl", "hh_harmless_test.jsonl.gz"):
        (tmp_path / name).touch()
    words = f"comparison --check --data {tmp_path} --peer_python {tmp_path}/none"
    monkeypatch.setattr(sys, "argv", words.split())
    monkeypatch.setattr(transformers.utils.logging, "_tqdm_active", True)
    with pytest.raises(SystemExit, match="without trl nothing can be compared"):
        comparison.main()
    assert transformers.utils.logging.is_progress_bar_enabled()  # nothing of this process has changed


def test_a_run_that_ends_tells_what_it_said() -> None:
    from benchmarks.in_turn import Run, RunEnded

    with (
        pytest.raises(RunEnded, match="no such thing"),
        Run(lambda *_: [sys.executable, "-c", "exit('no such thing')"], {}),
    ):
        pass


# A benchmark whose run says that it is about to begin, and then computes for ever.
_BENCHMARK = """
import sys, time
from benchmarks.in_turn import Run
run = '''
import os, socket, sys, time
channel = socket.socket(socket.AF_UNIX)
channel.connect(sys.argv[1])
print([os.getpid()], file=channel.makefile("w"), flush=True)
while True:
    time.sleep(0.05)
'''
with Run(lambda address, _: [sys.executable, "-c", run, address], {}) as one:
    print(one.started[0], flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a run ends when it has taken its step")
def test_a_benchmark_that_is_killed_takes_its_runs_along() -> None:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
    with subprocess.Popen([sys.executable, "-c", _BENCHMARK], stdout=subprocess.PIPE, env=environment) as benchmark:
        assert benchmark.stdout is not None
        run = psutil.Process(int(benchmark.stdout.readline()))
        benchmark.kill()
    gone, _ = psutil.wait_procs([run], timeout=20)
    assert gone == [run]


def test_a_run_that_nobody_asks_any_more_ends(tmp_path: Path) -> None:
    from benchmarks.turn_taking import TurnTaking

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "turns"))
        listener.listen()
        waiting = TurnTaking(str(tmp_path / "turns"))
        state: Any = Namespace(is_world_process_zero=True)
        with ThreadPoolExecutor(1) as pool:
            begun = pool.submit(waiting.on_train_begin, None, state, None)
            connection = listener.accept()[0]
            assert b"start_processor" in connection.recv(10_000)
            connection.close()
            with pytest.raises(SystemExit, match="is gone"):
                begun.result()


# -- floors

# c = 10 parameters a token, a head of 5, one number of query over two layers, all trained; one number of 4 bytes each.
LOAD = {"rows": 1, "tokens": 10, "targets": 6, "sequences": 3, "unshared": 18, "padded": 18, "keys": 18, "pairs": 43}
LOAD |= {"longest": 2, "grown": 9}


def test_the_floor_of_a_step_of_sft() -> None:
    from benchmarks.comparison.cells import Cell
    from benchmarks.comparison.floors import work_of

    shape = dataclasses.replace(SHAPE, weight_bytes=40, trained_bytes=40, num_parameters=10, num_trained=10)
    shape = dataclasses.replace(shape, saved=Saved(100.0, 10.0, 0.0, 0.0, True))
    work = work_of(Cell("sft", "full", "float32", "gsm8k", "4M"), [LOAD], shape, SETTING)
    assert work.operations == 6 * 10 * 10 + 14 * 2 * 43 + 6 * 5 * 6
    # 10 tokens keep 100 bytes in each of two layers and 10 outside, and 18 keys are copied beside each other.
    kept = 2 * (100 * 10 + 2 * 4 * 18) + 10 * 10
    assert work.bytes == 2 * 40 + 2 * 40 + 28 * 10 + 2 * kept
    assert (work.sampling_operations, work.sampling_bytes) == (0, 0)
    assert work.seconds(products=1000.0, copy=100.0) == {
        "products": work.operations / 1000,
        "memory": work.bytes / 100,
        "sampling": 0,
    }


def test_a_reference_is_a_forward_pass_more_and_steps_are_averaged() -> None:
    from benchmarks.comparison.cells import Cell
    from benchmarks.comparison.floors import work_of

    forward = 2 * 10 * 10 + 4 * 2 * 43 + 2 * 5 * 6
    sft, dpo = (work_of(Cell(m, "full", "float32", "hh", "4M"), [LOAD], SHAPE, SETTING) for m in ("sft", "dpo"))
    assert dpo.operations - sft.operations == forward
    twice = work_of(Cell("sft", "full", "float32", "hh", "4M"), [LOAD, LOAD | {"targets": 8}], SHAPE, SETTING)
    assert twice.operations == sft.operations + 6 * 5 * 1  # one target more on average


def test_sampling_reads_the_weights_once_a_token_and_its_keys_and_values() -> None:
    from benchmarks.comparison.cells import Cell
    from benchmarks.comparison.floors import work_of

    shape = dataclasses.replace(SHAPE, weight_bytes=40)
    work = work_of(Cell("grpo", "full", "float32", "hh", "4M"), [LOAD], shape, SETTING)
    assert work.sampling_operations == 2 * 10 * 10 + 4 * 2 * 43 + 2 * 5 * 6
    # Two tokens, one after the other; the prompt's 4 keys are read at each, and those of completions as they grow.
    assert work.sampling_bytes == 2 * 40 + (2 * 1 * 2 * 4) * (2 * 4 + 9)
    assert work.seconds(1e30, 1.0)["sampling"] == work.sampling_bytes
    assert work.seconds(1.0, 1e30)["sampling"] == work.sampling_operations


def test_the_time_of_a_step_is_told_by_kind() -> None:
    import torch

    from benchmarks.step_profile import KINDS, StepProfile, kind_of

    names = (
        "aten::addmm",
        "aten::_to_copy",
        "aten::silu_backward",
        "aten::view",
        "ProfilerStep*",
        "aten::_fused_adamw_",
    )
    assert list(map(kind_of, names)) == ["products", "copies", "element by element", None, None, "optimizer"]
    a = torch.ones(300, 300)
    profile = StepProfile()
    (a @ a).exp()
    found = profile.seconds()
    assert list(found) == [*KINDS, "rest"]
    assert min(found["products"], found["element by element"]) > 0 == found["attention"]


# -- the page


def test_a_bar_is_a_share_of_what_the_peer_takes() -> None:
    """Of a cell that takes half the time and a quarter of the memory, and a fifth and an eighth at the least."""
    from benchmarks.comparison.picture import picture

    half = record("dpo", seconds=[0.5, 1.0, 1.5], peak=100, before=50)
    half |= {"work": half["work"] | {"operations": 4e9, "bytes": 0.0}}
    larger = record() | {"cell": half["cell"] | {"size": "27M"}}
    drawn = picture({"cells": {"a": half, "b": larger}, "rates": {"float32": 1e10, "copy": 1e10}})
    widths = [float(width) / 300 for width in re.findall(r'<rect x="\d+" y="\d+" width="([\d.]+)"', drawn)]
    assert widths == [1.0, 0.5, 0.2, 1.0, 0.25, 0.125]
    texts = [element.text for element in ElementTree.fromstring(drawn).iter() if element.text]
    assert {"DPO, full, float32", "2.0×", "0.25"} <= set(texts)


def test_the_page_is_what_was_measured() -> None:
    from benchmarks.comparison.picture import picture
    from benchmarks.comparison.tables import page

    results = json.loads((ROOT / "benchmarks/comparison/results.json").read_text(encoding="utf-8"))
    assert (ROOT / "docs/speed.md").read_text(encoding="utf-8") == page(results)
    assert (ROOT / "docs/pictures/speed.svg").read_text(encoding="utf-8") == picture(results)
    assert results["cells"]


def test_a_page_elsewhere_has_its_picture_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.comparison.__main__ import write

    results = json.loads((ROOT / "benchmarks/comparison/results.json").read_text(encoding="utf-8"))
    write(results, argparse.Namespace(page=tmp_path / "new/page.md", keep=False))
    text = (tmp_path / "new/page.md").read_text(encoding="utf-8")
    (name,) = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert (tmp_path / "new" / name).is_file() and text in capsys.readouterr().out


def test_pages_show_the_main_rows() -> None:
    from benchmarks.comparison.tables import main_rows, with_rows

    results = json.loads((ROOT / "benchmarks/comparison/results.json").read_text(encoding="utf-8"))
    for page in ("README.md", "docs/from_trl.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert with_rows(text, main_rows(results)) == text


def test_tables_by_hand() -> None:
    from benchmarks.comparison.tables import aims, memory_table, time_table

    rates = {"float32": 8e9, "bf16": 1e12, "copy": 4e9}
    one = record(seconds=[0.5, 1.0, 1.5], processor=[1.0] * 3, peak=200, start_processor=3.0)
    # 60 tokens in 6 and in 3 seconds; 4e9 operations at 8e9 a second and 1e9 bytes at 4e9 of a step of one second.
    row = "| SFT | full | float32 | GSM8K | 4M | 2.000 | 1.000 | 2.00× (2.00×) | 10 | 20 | 0.750 (75%) | 0e+00 |"
    assert time_table([one], rates).splitlines()[-1] == row
    assert memory_table([one]).splitlines()[-1].endswith("| 0 | 0 | 0.50 | 0 (+10%) | 5.0 | 5.0 | 0.75 |")
    text, table = aims([one], rates, imports=1.5)
    assert text.startswith("1 of 3 aims")
    assert "| 2.5× as fast | 2.00× | that is 0.800 s; the floor is 0.750 s |" in table
    assert "| 0.5× the start | 0.75× | that is 2.000 s; the floor is 1.500 s |" in table
    large = {"peak": 400 * 2**20}
    held = one | {"own": one["own"] | large | {"before": 150 * 2**20}, "peer": one["peer"] | large}
    assert "| 1.00× | that is 200 MiB; 150 are held before the first step |" in aims([held], rates, 1.5)[1]
    slower = aims([one], rates | {"float32": 5e9}, imports=2.5)[1]  # 0.8 s of products and 0.25 s of memory
    assert "that is 0.800 s; the floor is 1.050 s: out of reach" in slower
    assert "that is 2.000 s; the floor is 2.500 s: out of reach" in slower
