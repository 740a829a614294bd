"""Completion of the command line, in the shells themselves."""

import os
import pty
import re
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from posttrain import cli
from posttrain.cli import main
from posttrain.completion import KNOWN_VALUES, SHELLS, commands, options_of
from posttrain.config import COMMANDS, METHODS
from posttrain.config.effects import refused
from posttrain.config.fields import flags_of
from posttrain.rollout.rewards.functions import FUNCTIONS

ROOT = Path(__file__).resolve().parent.parent
Ask = Callable[[str], list[str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A script a shell, and paths to complete."""
    folder = tmp_path_factory.mktemp("completion")
    for shell, script in SHELLS.items():
        (folder / shell).write_text(script(commands(), {name: options_of(name) for name in commands()}))
    (folder / "rows").mkdir()
    (folder / "rows/pairs of words.jsonl").write_text("")
    (folder / "rows/old").mkdir()
    return folder


def bash(folder: Path, line: str) -> list[str]:
    """What bash offers at the end of a line."""
    script = f"""
        source {folder / "bash"}
        COMP_WORDS=({line.replace("=", " = ")}{" ''" if line.endswith((" ", "=")) else ""})
        COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
        _posttrain
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    command = ["bash", "--norc", "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=True)
    assert result.stderr == ""
    return [word for word in result.stdout.splitlines() if word]


def fish(folder: Path, line: str) -> list[str]:
    command = f"source {folder / 'fish'}; complete -C {line!r}"
    environment = os.environ | {"HOME": str(folder)}
    result = subprocess.run(["fish", "-c", command], capture_output=True, text=True, cwd=folder, env=environment)
    assert result.stderr == ""
    return [offered.partition("\t")[0] for offered in result.stdout.splitlines()]


class Zsh:
    """A zsh on a terminal, asked by pressing Tab twice."""

    def __init__(self, folder: Path):
        self.child, self.terminal = pty.fork()
        if self.child == 0:
            os.chdir(folder)
            os.execvpe("zsh", ["zsh", "-f", "-i"], os.environ | {"TERM": "dumb"})
        setup = "stty rows 500 cols 200; autoload -Uz compinit; compinit -u -D; LISTMAX=0; setopt no_beep; PS1='> '"
        os.write(self.terminal, f"{setup}; zstyle ':completion:*' menu no; source zsh; echo rea''dy\n".encode())
        self.read("ready\r\n")

    def ask(self, line: str) -> list[str]:
        os.write(self.terminal, f"{line}\t\t".encode())
        shown = self.read(None).replace(line, "", 1)
        os.write(self.terminal, b"\x15\n")  # clears the line
        self.read(None)
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).split()

    def read(self, end: str | None) -> str:
        """What comes until `end`; None: until nothing more comes for a while."""
        text, deadline = "", time.monotonic() + 10
        while time.monotonic() < deadline:
            if not select.select([self.terminal], [], [], 10 if end or not text else 0.25)[0]:
                break
            text += os.read(self.terminal, 65536).decode(errors="replace")
            if end and end in text:
                break
        return text

    def close(self) -> None:
        os.close(self.terminal)
        os.waitpid(self.child, 0)


@pytest.fixture(scope="module")
def zsh(folder: Path) -> Iterator[Zsh]:
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    session = Zsh(folder)
    yield session
    session.close()


@pytest.fixture(params=["bash", "zsh", "fish"])
def ask(request: pytest.FixtureRequest, folder: Path) -> Ask:
    """A function that tells what a shell offers for a line."""
    if request.param == "zsh":
        return request.getfixturevalue("zsh").ask
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    offered = bash if request.param == "bash" else fish
    return lambda line: offered(folder, line)


def test_methods_and_commands(ask: Ask) -> None:
    assert {*METHODS, *COMMANDS} <= set(ask("posttrain "))
    assert "oo" in " ".join(ask("posttrain rl"))


def test_flags_of_the_method(ask: Ask) -> None:
    offered = ask("posttrain dpo --loss_")
    assert {"--loss_type", "--loss_weights"} <= set(offered)
    assert "--packing" not in ask("posttrain dpo --p")
    assert "--packing" in ask("posttrain sft --p")
    assert "--no_packing" in ask("posttrain sft --no_pack") or "--no_packing" in ask("posttrain sft --no_p")


def test_choices_of_a_flag(ask: Ask) -> None:
    assert {"nll", "dft"} <= set(ask("posttrain sft --max_steps 3 --loss_type "))
    offered = set(ask("posttrain dpo --loss_type "))
    assert {"sigmoid", "hinge", "ipo"} <= offered and "nll" not in offered
    assert {"fsdp1", "zero3"} <= set(ask("posttrain sft --accelerate_config "))


def test_paths(ask: Ask) -> None:
    assert "pairs" in " ".join(ask("posttrain dpo --dataset_name rows/")).replace("\\", "")
    folders = " ".join(ask("posttrain dpo --output_dir rows/"))
    assert "old" in folders and "pairs" not in folders


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("posttrain sft --eval_strategy=", ["no", "steps", "epoch"]),
        ("posttrain sft --eval_strategy=e", ["epoch"]),
        ("posttrain dpo --loss_type sigmoid sf", ["sft"]),
        ("posttrain dpo --report_to tensorboard wan", ["wandb"]),
        ("posttrain sft --packing t", ["true"]),
        ("posttrain sft --learning_rate 1e-5 --packing_s", ["--packing_strategy"]),
        ("posttrain sft --learning_rate 1", []),
        ("posttrain grpo --reward_funcs acc", ["accuracy_reward"]),
        ("posttrain inspect rows/pa", ["rows/pairs of words.jsonl"]),
        ("posttrain inspect rows --me", ["--method"]),
        ("posttrain inspect rows --method gr", ["grpo"]),
        ("posttrain check rows/pa", ["rows/pairs of words.jsonl"]),
        ("posttrain check rows --max_id", ["--max_identical"]),
        ("posttrain check rows --test rows/pa", ["rows/pairs of words.jsonl"]),
        ("posttrain plan gr", ["grpo"]),
        ("posttrain plan dpo --probe_s", ["--probe_steps"]),
        ("posttrain completion f", ["fish"]),
        ("posttrain env ", []),
        ("posttrain unknown --", []),
    ],
)
def test_the_rest_in_bash(line: str, expected: list[str], folder: Path) -> None:
    assert bash(folder, line) == expected


def test_after_a_value_come_flags_and_no_negations_unasked(folder: Path) -> None:
    offered = bash(folder, "posttrain sft --learning_rate 1e-5 ")
    wanted = {f"--{name}" for name in flags_of(METHODS["sft"]) if name not in refused(METHODS["sft"])}
    assert wanted <= set(offered)
    assert not any(word.startswith("--no_") for word in offered)


def test_what_is_offered_exists() -> None:
    assert COMMANDS.keys() == cli._RUN.keys()
    assert set(KNOWN_VALUES["reward_funcs"].split()) == set(FUNCTIONS)
    assert set(KNOWN_VALUES["accelerate_config"].split()) == {
        path.stem for path in (ROOT / "accelerate_configs").iterdir()
    }


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in SHELLS:
        assert main(["completion", shell]) == 0
        assert "posttrain" in capsys.readouterr().out
    assert main(["completion", "--help"]) == 0
    assert 'eval "$(posttrain completion bash)"' in capsys.readouterr().out
    for words in ([], ["bsh"], ["bash", "zsh"]):
        assert main(["completion", *words]) == 2
        assert "name a shell: posttrain completion bash|zsh|fish" in capsys.readouterr().err
