"""The command: what it prints, what it imports, how it fails, and how it starts several processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from posttrain import cli
from posttrain.cli import main
from posttrain.config import COMMANDS, METHODS, LaunchOptions, SFTConfig, parse_command_line
from posttrain.errors import UserError
from posttrain.experiment.params import read_section, stage_config
from posttrain.launch import LAUNCHED, launcher_command, launcher_environment, supervise, train

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "transformers", "datasets", "accelerate", "peft", "numpy"}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[SFTConfig]:
    """The configs that would be trained, in place of training them."""
    configs: list[SFTConfig] = []
    monkeypatch.setattr(cli, "_train", configs.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv(LAUNCHED, raising=False)
    return configs


def words(tmp_path: Path, *more: str) -> list[str]:
    return [
        "--model_name_or_path",
        "org/model",
        "--dataset_name",
        "org/rows",
        "--output_dir",
        str(tmp_path / "o"),
        *more,
    ]


def imported(stderr: str) -> set[str]:
    """The top-level modules that `python -X importtime` reports."""
    lines = [line for line in stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().split(".")[0] for line in lines}


CLI = ["-m", "posttrain.cli"]
HERE = ["--model_name_or_path", "./no"]


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        ([*CLI, "sft", "--help"], 0, "What people set first:"),
        ([*CLI, "dpo", "--num_train_epoch", "1"], 2, "posttrain: error: --num_train_epoch: no such flag"),
        ([*CLI, "dpo", *HERE], 2, "posttrain: error: dataset_name is missing"),
        ([*CLI, "dpo", *HERE, "--dataset_name", "a"], 2, "./no does not exist"),
        ([str(ROOT / "scripts/sft.py"), "--params", "no.yaml"], 2, "posttrain: error: no.yaml: cannot be read"),
        ([str(ROOT / "scripts/dpo.py"), "--params", "p.yaml"], 2, "p.yaml: dpo.bta: no such key; did you mean beta?"),
    ],
)
def test_no_answer_about_flags_imports_torch(arguments: list[str], code: int, expected: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("dpo:\n  bta: 1\n")
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert expected in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "posttrain" in imported(done.stderr)
    assert imported(done.stderr) & HEAVY == set()


def test_the_overview_lists_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"]):
        assert main(arguments) == 0
        output = capsys.readouterr().out
        assert all(f"\n  {name} " in output for name in [*METHODS, *COMMANDS])
        assert max(map(len, output.splitlines())) <= 100
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "posttrain 0.1.0\n"
    assert main(["dpp"]) == 2
    names = ", ".join([*METHODS, *COMMANDS])
    assert f"'dpp' is no method or command ({names}); did you mean dpo?" in capsys.readouterr().err
    assert main(["inspct", "rows.jsonl"]) == 2
    assert "did you mean inspect?" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, *CLI, "sft", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.wait(30) == 128 + signal.SIGPIPE
    assert process.stderr.read() == b""
    process.stderr.close()


def test_a_run_in_one_process_happens_here(
    trained: list[SFTConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_NAME", "before")
    (tmp_path / "c.yaml").write_text("env:\n  A_NAME: 7\nlearning_rate: 1e-4\n")
    arguments = words(tmp_path, "--config", str(tmp_path / "c.yaml"))
    for more in ([], ["--num_processes", "1"], ["--accelerate_config", "single_gpu"], ["--accelerate_config", "cpu"]):
        assert main(["sft", *arguments, *more]) == 0
    assert [config.use_cpu for config in trained] == [None, None, None, True]
    assert trained[0].learning_rate == 1e-4
    assert os.environ["A_NAME"] == "7"


def test_mistakes_while_training_and_ctrl_c_end_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error, code, text in [
        (UserError("rows.jsonl line 3: no text"), 2, "posttrain: error: rows.jsonl line 3: no text\n"),
        (KeyboardInterrupt(), 130, "posttrain: interrupted\n"),
    ]:

        def run(config: SFTConfig, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(cli, "_train", run)
        assert main(["sft", *words(tmp_path)]) == code
        assert capsys.readouterr().err == text


def launch_options(*more: str) -> LaunchOptions:
    return parse_command_line("sft", ["--model_name_or_path", "m", "--dataset_name", "d", *more])[1]


def test_other_processes_run_the_same_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # names are found from anywhere
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    launch = launch_options("--num_processes", "4", "--accelerate_config", "zero2", "--main_process_port", "5000")
    assert launcher_command(launch, ["-m", "posttrain.cli", "sft"]) == [
        sys.executable, "-m", "posttrain.processes",
        "--config_file", str(ROOT / "accelerate_configs/zero2.yaml"),
        "--num_processes", "4", "--main_process_port", "5000", "-m", "posttrain.cli", "sft",
    ]  # fmt: skip
    assert launcher_environment(launch) == {LAUNCHED: "1", "OMP_NUM_THREADS": "4"}
    assert launcher_environment(launch_options("--accelerate_config", "fsdp2"))["OMP_NUM_THREADS"] == "2"  # of 8
    assert launcher_environment(launch_options("--num_processes", "99"))["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert launcher_environment(launch)["OMP_NUM_THREADS"] == "3"
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert launcher_environment(launch)["OMP_NUM_THREADS"] == "3"


def test_a_file_of_accelerate_is_taken_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("num_processes: 2\nmain_process_port: 1\n")
    for flag in ("--config_file", "--accelerate_config"):
        command = launcher_command(launch_options(flag, str(file)), ["x.py"])
        assert command[3:] == ["--config_file", str(file), "x.py"]


def test_a_file_of_several_cpu_processes_starts_several(tmp_path: Path) -> None:
    file = tmp_path / "cpu2.yaml"
    file.write_text("distributed_type: MULTI_CPU\nuse_cpu: true\nnum_processes: 2\nmain_process_port: 1\n")
    assert "--multi_gpu" in launcher_command(launch_options("--config_file", str(file)), ["x.py"])


def test_every_shipped_launcher_configuration_has_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for file in (ROOT / "accelerate_configs").glob("*.yaml"):
        where = ["--machine_rank", "1", "--main_process_ip", "10.0.0.1"] if file.stem == "multi_node" else []
        assert str(file) in launcher_command(launch_options("--accelerate_config", file.stem, *where), ["x.py"])


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--accelerate_config", "zero4"], "accelerate_config: zero4 is neither a file nor one of cpu, fsdp1, "),
        (["--config_file", "no.yaml"], "config_file: no.yaml is neither a file nor"),
        (["--config_file", "a", "--accelerate_config", "b"], "accelerate_config and config_file name the same thing"),
        (["--num_processes", "2", "--accelerate_config", "single_gpu"], "single_gpu is one process; use multi_gpu"),
    ],
)
def test_mistakes_in_launching_are_named(
    more: list[str], expected: str, trained: list[SFTConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sft", *words(tmp_path, *more)]) == 2
    assert expected in capsys.readouterr().err
    assert not trained


def test_the_child_s_exit_code_is_returned() -> None:
    assert supervise([sys.executable, "-c", "raise SystemExit(7)"], os.environ) == 7
    assert supervise([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], os.environ) == 137


def test_signals_reach_the_child(tmp_path: Path) -> None:
    child = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n"
        "signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "time.sleep(60)\n"
    )
    parent = (
        "import os, sys\n"
        "from posttrain.launch import supervise\n"
        f"sys.exit(supervise([sys.executable, '-c', {child!r}, sys.argv[1]], os.environ))\n"
    )
    ready = tmp_path / "ready"
    process = subprocess.Popen([sys.executable, "-c", parent, str(ready)])
    deadline = time.monotonic() + 30
    while not ready.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 5


def test_two_processes_really_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That they find each other, and train together: test_stop_processes."""
    script = tmp_path / "child.py"
    script.write_text(
        "import os, sys\n"
        "from pathlib import Path\n"
        "def run(config):\n"
        "    size, threads = os.environ['WORLD_SIZE'], os.environ['OMP_NUM_THREADS']\n"
        "    Path(config.output_dir, os.environ['RANK']).write_text(f'{size} {threads} {config.use_cpu}')\n"
        "from posttrain.errors import report_mistakes\n"
        "from posttrain.launch import train\n"
        "from posttrain.config import parse_command_line\n"
        "sys.exit(report_mistakes(lambda: train(*parse_command_line('sft', sys.argv[1:]), [], run)))\n"
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "o").mkdir()
    arguments = words(tmp_path, "--num_processes", "2", "--accelerate_config", "cpu")
    config, options = parse_command_line("sft", arguments)
    assert train(config, options, [str(script), *arguments], run=print) == 0
    assert {file.name: file.read_text() for file in (tmp_path / "o").iterdir()} == dict.fromkeys("01", "2 1 True")


@pytest.mark.parametrize(
    ("world", "accelerator", "use_cpu"), [("2", False, True), ("2", True, None), ("1", False, None)]
)
def test_several_processes_without_an_accelerator_settle_on_the_cpu(
    world: str, accelerator: bool, use_cpu: bool | None, trained: list[SFTConfig], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setattr("torch.accelerator.is_available", lambda: accelerator)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", world)
    assert main(["sft", *words(tmp_path, "--num_processes", "2")]) == 0
    assert trained[0].use_cpu is use_cpu


def test_a_stage_reads_its_section_and_flags_on_top(tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text(
        "sft:\n  model_name_or_path: m\n  dataset_name: d\n  learning_rate: 1e-3\n  seed: 1\n"
        "  accelerate_config: fsdp2\n"
    )
    config, launch = stage_config("sft", ["--seed", "2", "--params", str(params), "--packing"])
    assert isinstance(config, SFTConfig)
    assert (config.learning_rate, config.seed, config.packing) == (1e-3, 2, True)
    assert launch.accelerate_config == "fsdp2"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stf:\n  seed: 1\n", "{path}: there is no section sft; did you mean stf?"),
        ("sft:\n", "{path}: sft holds no keys; wanted lines of the form `key: value` under it"),
        ("sft: 3\n", "{path}: sft holds no keys"),
    ],
)
def test_a_section_that_is_not_there_is_named(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_section(str(path), "sft")
    assert str(caught.value).startswith(expected.format(path=path))


def test_params_flag_without_a_file() -> None:
    with pytest.raises(UserError, match="--params: a value is missing"):
        stage_config("sft", ["--params"])
