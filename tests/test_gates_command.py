"""Thresholds and what is said of them, and `posttrain check`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from posttrain.cli import main
from posttrain.errors import RunFailed, UserError
from posttrain.experiment.gates.command import parse
from posttrain.experiment.gates.data_settings import DataLimits
from posttrain.experiment.gates.limits import (
    Check,
    Offender,
    check_thresholds,
    metrics_of,
    report,
    stop_on_failure,
    write_offenders,
)

STORY = "Ann has nine nuts and finds three more of them on her way home so how many nuts does Ann have now?"


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def check(value: float, key: str = "max_x", offenders: Sequence[Offender] = (), **thresholds: float) -> Check:
    return Check("x", value, key, thresholds, "what it is", "do something", offenders)


@pytest.mark.parametrize(
    ("value", "key", "thresholds", "level"),
    [
        (0.1, "max_x", {"warn": 0.1, "fail": 0.2}, "ok"),
        (0.11, "max_x", {"warn": 0.1, "fail": 0.2}, "warn"),
        (0.21, "max_x", {"warn": 0.1, "fail": 0.2}, "fail"),
        (0.9, "max_x", {"warn": 0.1}, "warn"),
        (0.9, "max_x", {}, "ok"),
        (0.7, "min_x", {"warn": 0.7, "fail": 0.5}, "ok"),
        (0.6, "min_x", {"warn": 0.7, "fail": 0.5}, "warn"),
        (0.4, "min_x", {"fail": 0.5}, "fail"),
        (float("nan"), "min_x", {"fail": 0.5}, "fail"),
        (float("nan"), "max_x", {"warn": 0.5}, "warn"),
    ],
)
def test_levels(value: float, key: str, thresholds: dict[str, float], level: str) -> None:
    assert check(value, key, **thresholds).level == level


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"max_empty": {"fial": 0.1}}, "max_empty: wanted warn, fail or both, found fial; did you mean fail?"),
        ({"max_empty": {"fail": "all"}}, "p.yaml: check_data.max_empty.fail: 'all' is not a number; to switch it off,"),
        ({"max_empty": {"warn": 0.2, "fail": 0.1}}, "max_empty: warn is 0.2 and fail 0.1, so that it would fail"),
    ],
)  # fmt: skip
def test_thresholds_that_make_no_sense(limits: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        check_thresholds(DataLimits(**limits), "p.yaml: check_data")
    assert expected in str(caught.value)


def test_what_is_said(tmp_path: Path) -> None:
    offenders = [Offender(f"f line {number}", "two\nlines " + "x" * 200, "is odd") for number in range(5)]
    checks = [check(0.5, offenders=offenders, fail=0.25), check(0.125, warn=0.0625), check(1.0, fail=1.0)]
    where = "p.yaml: s"
    assert report(checks, where).splitlines() == [
        "ok    x  1",
        "warn  x is 0.125, above p.yaml: s.max_x.warn, which is 0.0625",
        "fail  x is 0.5, above p.yaml: s.max_x.fail, which is 0.25",
        "3 checks: 1 ok, 1 to look at, 1 failed",
    ]
    assert metrics_of(checks[:1]) == {"x": 0.5, "num_checks": 1, "num_warnings": 0, "num_failures": 1}
    with pytest.raises(RunFailed) as caught:
        stop_on_failure(checks, "the data", where, "all.jsonl", "gates.md#data")
    lines = str(caught.value).splitlines()
    assert lines[0] == "the data: 1 of 3 checks failed"
    assert lines[1] == "x is 0.5, above p.yaml: s.max_x.fail, which is 0.25: what it is"
    assert lines[2].startswith('  f line 0: is odd: "two lines xxx')
    assert lines[5:] == ["  and 2 more, in all.jsonl", "  do something"]
    stop_on_failure(checks[1:], "the data", where, "all.jsonl", "gates.md#data")
    write_offenders(checks, tmp_path / "all.jsonl", [{"first": 1}])
    written = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text(encoding="utf-8").splitlines()]
    assert written[0] == {"first": 1}
    assert written[1] == {"check": "x", "level": "fail", **offenders[0]._asdict()}
    assert len(written) == 6


# The command.


def test_the_command_takes_files_and_thresholds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = write(
        tmp_path / "train.jsonl", [{"prompt": STORY, "completion": "12"}, {"prompt": "Why?", "completion": ""}]
    )
    test = write(tmp_path / "held.jsonl", [{"prompt": STORY}])
    listed = tmp_path / "all.jsonl"
    words = ["check", str(train), "--test", str(test), "--offenders", str(listed)]
    assert main(words) == 1
    output = capsys.readouterr()
    assert "fail  same_prompt/held is 1, above --max_same_prompt fail, which is 0" in output.out
    assert "posttrain: error: the data: 3 of 8 checks failed" in output.err
    assert f"  {test} line 1: its prompt is that of {train} line 1: " in output.err
    assert "empty/train_train is 0.5, above --max_empty fail" in output.err
    assert "More: docs/gates.md#data" in output.err
    assert len(listed.read_text(encoding="utf-8").splitlines()) == 3
    assert main([*words, "--max_same_prompt", "none", "--max_contaminated=fail=1", "--max_empty", "warn=0"]) == 0
    assert "7 checks: 6 ok, 1 to look at, 0 failed" in capsys.readouterr().out


def test_the_command_holds_out_the_other_splits_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "rows/train.jsonl", [{"text": "a"}])
    write(tmp_path / "rows/validation.jsonl", [{"text": "b"}])
    assert main(["check", str(tmp_path / "rows")]) == 0
    assert "same_prompt/rows_validation" in capsys.readouterr().out
    write(tmp_path / "rows/test.jsonl", [{"text": "A."}])
    assert main(["check", str(tmp_path / "rows")]) == 1
    assert "same_prompt/rows_test is 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "no data: name a file, a folder or a hub id; usage: posttrain check DATA"),
        (["a", "--max_emty", "fail=1"], "--max_emty: no such flag; did you mean max_empty?"),
        (["a", "--max_empty"], "--max_empty takes one value, not 0"),
        (["a", "--ngram", "3", "4"], "--ngram takes one value, not 2"),
        (["a", "--ngram", "1"], "--ngram: 1 is too small; it must be at least 2"),
        (["a", "--max_empty", "warn=1,fail=0"], "--max_empty: warn is 1 and fail 0"),
    ],
)
def test_mistakes_of_the_command(words: list[str], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(words)
    assert expected in str(caught.value)


def test_the_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--help"]) == 0
    output = capsys.readouterr().out
    assert "--max_contaminated      Share of contaminated held-out rows. [warn=0.01,fail=0.02]" in output
    assert "--offenders" in output
