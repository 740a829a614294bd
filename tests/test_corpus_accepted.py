"""What looks broken and is not: it is taken for what it says. And some of the corpus at the real command line."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from corpus import config_files, flags, folders
from tiny import run, write_base, write_sft

from posttrain.config import check_paths, parse_command_line
from posttrain.models import follow_umask

NEEDED = ["--model_name_or_path", "org/model", "--dataset_name", "org/rows"]


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--learning_rate", "1E-5"], "learning_rate", 1e-5),
        (["--learning_rate", ".5"], "learning_rate", 0.5),
        (["--learning_rate", "+1e-5"], "learning_rate", 1e-5),
        (["--learning_rate", "0"], "learning_rate", 0.0),
        (["--max_steps", "007"], "max_steps", 7),
        (["--seed", "1", "--seed", "2"], "seed", 2),
        (["--packing", "--no_packing"], "packing", False),
        (["--learning-rate=2e-5"], "learning_rate", 2e-5),
        (["--run_name", "a b"], "run_name", "a b"),
        (["--run_name=--x"], "run_name", "--x"),
        (["--run_name", "名前 🙂"], "run_name", "名前 🙂"),
        (["--output_dir", "a folder/with\na line"], "output_dir", "a folder/with\na line"),
        (["--output_dir", "50% of {it}"], "output_dir", "50% of {it}"),
        (["--max_steps", "0"], "max_steps", 0),
        (["--warmup_steps", "20"], "warmup_steps", 20.0),
        (["--max_length", "None"], "max_length", None),
        (["--model_init_kwargs", '{"a": {"b": [1, null]}}'], "model_init_kwargs", {"a": {"b": [1, None]}}),
    ],
)
def test_flags_that_are_taken(words: list[str], name: str, value: Any) -> None:
    config = parse_command_line("sft", [*NEEDED, *words])[0]
    assert getattr(config, name) == value
    check_paths(config)


@pytest.mark.parametrize(
    ("content", "name", "value"),
    [
        (b"\xef\xbb\xbfseed: 3\n", "seed", 3),
        (b"seed: 3\r\npacking: true\r\n", "packing", True),
        (b"seed: 3", "seed", 3),
        (b"learning_rate: 1e-5\n", "learning_rate", 1e-5),
        (b'learning_rate: "1e-5"\n', "learning_rate", 1e-5),
        (b"packing: yes\n", "packing", True),
        (b"packing: off\n", "packing", False),
        (b"save_strategy: no\n", "save_strategy", "no"),
        (b"seed: 010\n", "seed", 10),
        (b"seed: 0o10\n", "seed", 8),
        (b"seed: 0x10\n", "seed", 16),
        (b"run_name: 2026-01-01\n", "run_name", "2026-01-01"),
        (b"run_name: on\n", "run_name", "on"),
        (b"run_name: &a x\nproject: *a\n", "project", "x"),
        (b"lr_scheduler_kwargs: {<<: {a: 1}, b: 2}\n", "lr_scheduler_kwargs", {"a": 1, "b": 2}),
        (b"%YAML 1.1\n---\nseed: 3\n...\n", "seed", 3),
        (b'{"seed": 3}', "seed", 3),
        (b"max_length: ~\n", "max_length", None),
    ],
)
def test_files_that_are_taken(content: bytes, name: str, value: Any, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    config = parse_command_line("sft", [*NEEDED, "--config", str(tmp_path / "a.yaml")])[0]
    assert getattr(config, name) == value


def test_a_home_is_put_in_wherever_a_path_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell expands no tilde behind an equals sign, and none in YAML."""
    monkeypatch.setenv("HOME", str(tmp_path))
    config = parse_command_line("sft", [*NEEDED, "--output_dir=~/out", "--work_dir=~/work"])[0]
    assert (config.output_dir, config.work_dir) == (f"{tmp_path}/out", f"{tmp_path}/work")


def test_what_is_written_has_the_permissions_of_other_files(tmp_path: Path) -> None:
    """Weights too, which safetensors writes for their owner alone; and an odd output folder holds all of it."""
    before = os.umask(0o027)
    try:
        model, rows = write_base(tmp_path / "model"), write_sft(tmp_path / "rows.jsonl")
        out = tmp_path / "a folder\nof two lines"
        run("sft", model, rows, out, "--max_steps", "1", "--save_strategy", "steps", "--save_steps", "1")
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [*out.rglob("*"), *model.rglob("*")] if path.is_file()}
    assert {path.name for path in modes} >= {"model.safetensors", "optimizer.pt"}
    assert {path.name: oct(mode) for path, mode in modes.items() if mode != 0o640} == {}


def test_links_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "file").chmod(0o600)
    (tmp_path / "folder/inner").mkdir(parents=True)
    (tmp_path / "folder/link").symlink_to(tmp_path / "file")
    (tmp_path / "folder/inner/weights").write_text("")
    (tmp_path / "folder/inner/weights").chmod(0o600)
    follow_umask(tmp_path / "folder")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "folder/inner/weights").stat().st_mode) == 0o666 & ~_umask()
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["inner", "link"]


def _umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


REAL_FLAGS = ["misspelt", "a lone surrogate", "broken JSON", "an output at the root"]
REAL_FILES = ["flags: a billion laughs", "flags: a Python call", "accelerate: an unknown kind"]
REAL_FOLDERS = ["a pickle", "a shard missing", "weights cut off", "links in a circle"]


def command(*words: str) -> subprocess.CompletedProcess[str]:
    code = "import sys, posttrain.cli as c; n = c.main(); print('torch' in sys.modules); sys.exit(n)"
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60, check=False)


def check(done: subprocess.CompletedProcess[str], said: list[str]) -> None:
    """The exit code, the message, and that nothing heavy was imported to find it."""
    assert done.returncode == 2 and done.stdout == "False\n"
    assert done.stderr.startswith("posttrain: error: ") and "Traceback" not in done.stderr
    for part in said:
        assert part in done.stderr


@pytest.mark.parametrize("title", REAL_FLAGS)
def test_flags_at_the_command_line(title: str, tmp_path: Path) -> None:
    method, words, said = flags.CASES[title]
    check(command(method, *NEEDED, *(word.replace("{tmp}", str(tmp_path)) for word in words)), said)


@pytest.mark.parametrize("title", REAL_FILES)
def test_files_at_the_command_line(title: str, tmp_path: Path) -> None:
    kind, content, said = config_files.CASES[title]
    (tmp_path / "a.yaml").write_bytes(content)
    flag = "--config" if kind == "flags" else "--accelerate_config"
    rows = write_sft(tmp_path / "rows.jsonl")
    done = command(
        "sft", "--dataset_name", str(rows), *NEEDED[:2], flag, str(tmp_path / "a.yaml"), "--output_dir", str(tmp_path)
    )
    check(done, said)


@pytest.mark.parametrize("title", REAL_FOLDERS)
def test_folders_at_the_command_line(title: str, tmp_path: Path) -> None:
    model = write_base(tmp_path / "model")
    folders.CASES[title].change(model)
    rows = write_sft(tmp_path / "rows.jsonl")
    done = command(
        "sft", "--model_name_or_path", str(model), "--dataset_name", str(rows), "--output_dir", str(tmp_path / "out")
    )
    check(done, folders.CASES[title].said)
    assert not (tmp_path / "out").exists()
