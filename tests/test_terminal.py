"""What is written to stderr beside progress bars, and of text that would act on a terminal."""

import io
import logging
import sys
from pathlib import Path

import pytest
from tqdm import tqdm
from transformers.utils import logging as logging_of_transformers

from posttrain.cli import main
from posttrain.errors import RunFailed, report_mistakes
from posttrain.launch import _ToStderr
from posttrain.terminal import show_long_bars_only


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


def failing() -> int:
    raise RunFailed("the disk is full", "troubleshooting.md#resume")


def test_an_error_stands_on_lines_of_its_own_and_ends_the_bars(capsys: pytest.CaptureFixture[str]) -> None:
    bar, inner = tqdm(total=60, file=sys.stderr), tqdm(total=3, leave=False, position=1, file=sys.stderr)
    bar.update(15)
    assert report_mistakes(failing) == 1
    for each in (bar, inner):
        each.update(1)
        each.refresh()
        each.close()
    lines = capsys.readouterr().err.split("\n")
    assert lines[-3:] == ["posttrain: error: the disk is full", "More: docs/troubleshooting.md#resume", ""]


def test_a_warning_stands_on_a_line_of_its_own_and_the_bar_goes_on_below(capsys: pytest.CaptureFixture[str]) -> None:
    with tqdm(total=60, file=sys.stderr, mininterval=0) as bar:
        bar.update(15)
        _ToStderr().emit(logging.makeLogRecord({"msg": "step 3: not\x1b[31m finite"}))
        bar.update(15)
    lines = capsys.readouterr().err.split("\n")
    assert lines[1] == "step 3: not\\x1b[31m finite"
    assert "30/60" in lines[2]


def test_on_a_terminal_the_bar_is_wiped_out_and_drawn_again_below(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with tqdm(total=60, file=sys.stderr, mininterval=0) as bar:
        bar.update(15)
        _ToStderr().emit(logging.makeLogRecord({"msg": "step 3"}))
    before, _, after = sys.stderr.getvalue().partition("\r\x1b[Kstep 3\n")
    assert before.endswith("  \r")
    assert "15/60" in after


@pytest.mark.parametrize("words", [["sft", "--model_name_or_path", "x/y", "--dataset_name"], ["inspect"]])
@pytest.mark.parametrize(
    "text",
    [
        '{"prompt": "a", "completion": "\x1b]0;title\x07\x1b[31mred"\n',
        '{"q\\u001b[31mx\\u009b": "y\\u0000"}\n',
        '{"text": "a"}\n{"text": 3, "q\\u001b[31mx": "y"}\n{"prompt": ["\\u001b[31m"], "completion": "b"}\n',
    ],
)
def test_nothing_of_a_data_file_acts_on_the_terminal(
    words: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text(text)
    assert main([*words, str(tmp_path / "rows.jsonl")]) in (0, 1, 2)
    printed = "".join(capsys.readouterr())
    assert printed and not [letter for letter in printed if not letter.isprintable() and letter != "\n"]


def test_bars_of_transformers_are_shown_where_they_take_a_while(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = logging_of_transformers.set_tqdm_hook(None)
    monkeypatch.setattr(logging_of_transformers, "_tqdm_active", True)  # whatever ran in this process
    try:
        show_long_bars_only()
        list(logging_of_transformers.tqdm(range(3), desc="Writing model shards"))
        assert capsys.readouterr().err == ""
        monkeypatch.setattr("posttrain.terminal._SECONDS_BEFORE_BAR", 0.0)
        list(logging_of_transformers.tqdm(range(3), desc="Writing model shards"))
        assert "Writing model shards: 100%" in capsys.readouterr().err
    finally:
        logging_of_transformers.set_tqdm_hook(before)
