"""Every command in the README and the other documents is one that exists."""

import re
import shlex
from pathlib import Path

import pytest

from posttrain.config import parse_command_line

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md"))]


def code_of(document: str) -> str:
    """The code of a document, a command a line."""
    text = (ROOT / document).read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return re.sub(r"\\\n\s*", " ", "\n".join([*blocks, *spans]))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_exist(document: str) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    named = set(re.findall(r"^make +([a-z][a-z-]*)", code_of(document), flags=re.MULTILINE))
    assert named <= targets


def commands() -> list[str]:
    """The training commands of all documents, with their flags."""
    found = (
        re.findall(r"^posttrain (?:sft|reward|dpo|grpo|rloo) .*", code_of(name), flags=re.MULTILINE)
        for name in DOCUMENTS
    )
    return [command for of_document in found for command in of_document if "--help" not in command]


@pytest.mark.parametrize("command", commands())
def test_flags_of_commands_are_understood(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, method, *flags = shlex.split(command, comments=True)
    monkeypatch.chdir(tmp_path)
    if "--config" in flags:
        Path(flags[flags.index("--config") + 1]).write_text("model_name_or_path: m\ndataset_name: d\noutput_dir: o\n")
    config, _ = parse_command_line(method, flags)
    assert config.model_name_or_path


def test_the_readme_shows_commands() -> None:
    assert "make pipeline" in code_of("README.md")
    assert {command.split()[1] for command in commands()} == {"sft", "reward", "dpo", "grpo", "rloo"}
