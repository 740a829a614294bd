"""Checks of data: what passes, what a planted fault does, and what is said of it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from posttrain.cli import main
from posttrain.data.sources import FileSource
from posttrain.embedded import task
from posttrain.errors import RunFailed, UserError
from posttrain.experiment.gates.command import parse
from posttrain.experiment.gates.data_checks import Part, check_data
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
from posttrain.experiment.gates.pair_checks import label_conflicts, length_bias
from posttrain.experiment.gates.parts import read_parts
from posttrain.experiment.gates.texts import TextRow, read_texts

STORY = "Ann has nine nuts and finds three more of them on her way home so how many nuts does Ann have now?"


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def prompts(name: str, *texts: str) -> Part:
    return Part(name, [TextRow(f"{name} line {number}", text, ()) for number, text in enumerate(texts, start=1)])


def pairs(*rows: tuple[str, str, str]) -> list[TextRow]:
    return [
        TextRow(f"line {number}", prompt, (chosen, rejected), is_pair=True)
        for number, (prompt, chosen, rejected) in enumerate(rows, start=1)
    ]


def found(train: list[Part], held_out: list[Part], **limits: Any) -> dict[str, Check]:
    checks, _ = check_data(train, held_out, DataLimits(**limits))
    return {check.metric: check for check in checks}


# Reading.


def test_every_format_is_what_it_asks_and_what_it_answers(tmp_path: Path) -> None:
    system, user, answer = said("system", "Be brief."), said("user", "Why?"), said("assistant", "So.")
    no = said("assistant", "No.")
    rows: list[tuple[dict[str, Any], tuple[str, tuple[str, ...], bool]]] = [
        ({"messages": [system, user, answer]}, ("Why?", ("So.",), False)),
        ({"messages": [user, answer, said("user", "Sure?")]}, ("Why?\nSo.\nSure?", (), False)),
        ({"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": ""}]}, ("Why?", ("",), False)),
        ({"prompt": "Why?", "completion": "So."}, ("Why?", ("So.",), False)),
        ({"prompt": [system, user], "solution": "3"}, ("Why?", (), False)),
        ({"text": "All of it."}, ("All of it.", (), False)),
        ({"input_ids": [3, 1, 4]}, ("3 1 4", (), False)),
        ({"prompt": [user], "chosen": [answer], "rejected": [said("assistant", "")]}, ("Why?", ("So.", ""), True)),
        ({"chosen": "Why? So.", "rejected": "Why? No."}, ("Why?", (" So.", " No."), True)),
        ({"chosen": [user, answer], "rejected": [user, answer]}, ("", ("Why?\nSo.",) * 2, True)),
        ({"prompt": "Why?", "chosen": [user, answer], "rejected": [user, no]}, ("Why?", ("So.", "No."), True)),
    ]  # fmt: skip
    path = write(tmp_path / "rows.jsonl", [row for row, _ in rows])
    read = read_texts(FileSource((path,)), "rows")
    assert [(row.prompt, row.answers, row.is_pair) for row in read] == [expected for _, expected in rows]
    assert read[1].place == f"{path} line 2"


def test_a_call_of_a_tool_is_something_said(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]}
    path = write(tmp_path / "rows.jsonl", [{"messages": [said("user", "3+4?"), call]}])
    assert read_texts(FileSource((path,)), "rows")[0].answers == ("[{'name': 'add'}]",)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "Why?"}, "line 1: nothing to compare: found question; wanted messages, text, prompt, or"),
        ({"chosen": "a", "rejected": [said("user", "b")]}, "line 1: chosen and rejected are of different kinds"),
        ({"messages": 3}, "line 1: "),
    ],
)
def test_a_row_without_text_is_named(row: dict[str, Any], expected: str, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(UserError) as caught:
        read_texts(FileSource((path,)), "rows")
    assert str(caught.value).startswith(f"{path} {expected}")


def test_splits_are_read_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data/sft/train.jsonl", [{"text": "a"}])
    write(tmp_path / "data/sft/test.jsonl", [{"text": "b"}])
    assert [part.name for part in read_parts(["data/sft"], ["train", "test"], "here")] == ["sft_train", "sft_test"]
    for sets, splits, expected in [
        (["data/sft"], ["validation"], "data/sft: no split 'validation'; found test, train"),
        ([], ["train"], "p.yaml: check_data.sets is empty; name the data sets"),
        (["data/sft", "other/sft"], ["train"], "two sets are called sft, and so would their metrics"),
        (["data/sfd"], ["train"], "data/sfd"),
    ]:
        with pytest.raises(UserError) as caught:
            read_parts(sets, splits, "p.yaml: check_data.sets")
        assert expected in str(caught.value)


# Contamination.


def test_a_copied_prompt_is_found_whatever_its_case_and_punctuation() -> None:
    train, test = prompts("train", "other words", STORY.upper().replace(" ", "  ")), prompts("test", STORY, "new")
    checks = found([train], [test])
    assert checks["same_prompt/test"].value == checks["contamination/test"].value == 0.5
    assert checks["same_prompt/test"].level == checks["contamination/test"].level == "fail"
    assert checks["same_prompt/test"].offenders == [
        Offender("test line 1", STORY, "its prompt is that of train line 2")
    ]


def test_a_prompt_with_another_end_is_contaminated_and_not_the_same() -> None:
    # Of 22 words the last one is another: the 21 before stand in n-grams of 13 of the training row.
    train, test = prompts("train", "few words", f"Question: {STORY}"), prompts("test", STORY.replace("now", "today"))
    checks = found([train], [test])
    assert checks["same_prompt/test"].value == 0
    assert checks["contamination/test"].value == 1
    (offender,) = checks["contamination/test"].offenders
    assert offender.why == "95% of the words of its prompt stand in train line 2"
    assert found([train], [test], contaminated_from=0.96)["contamination/test"].value == 0


def test_a_prompt_that_stands_in_a_training_answer_is_contaminated() -> None:
    train = Part("train", [TextRow("train line 1", "Invent a problem.", (f"Here it is. {STORY}",))])
    assert found([train], [prompts("test", STORY)])["contamination/test"].value == 1


def test_sentences_from_many_rows_are_no_contamination() -> None:
    first, second = "a b c d e f g h i j k l m n", "o p q r s t u v w x y z 1 2"
    checks = found([prompts("train", first, second)], [prompts("test", f"{first} {second}")])
    assert checks["contamination/test"].value == 0


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default data, a quarter of them."""
    folder = tmp_path_factory.mktemp("embedded")
    sizes = {(name, split): 250 for name in task.SETS for split in task.SPLITS}
    sizes |= {("sft", "train"): 6000, ("preference", "train"): 2000, ("prompts", "train"): 1000}
    task.write_data(task.draw_sets(0, sizes), 0, 0.7, folder)
    return folder


def of_embedded(folder: Path) -> tuple[list[Part], list[Part]]:
    sets = [str(folder / name) for name in task.SETS]
    return read_parts(sets, ["train"], ""), read_parts(sets, ["validation", "test"], "")


def test_the_default_data_pass_with_a_warning_about_length(embedded: Path) -> None:
    checks = found(*of_embedded(embedded))
    assert {name for name, check in checks.items() if check.level == "warn"} <= {
        "length_rule/preference_train",
        "length_rule/preference_validation",
        "length_rule/preference_test",
    }
    assert not [name for name, check in checks.items() if check.level == "fail"]
    assert checks["duplicates/sft_train_near"].value == checks["same_prompt/prompts_test"].value == 0
    assert len(checks) == 45


def test_a_leak_into_the_default_data_fails(embedded: Path) -> None:
    train, held_out = of_embedded(embedded)
    test = next(part for part in held_out if part.name == "prompts_test")
    one = TextRow("leak line 1", test.rows[7].prompt, ("#### 3",))
    checks = found([*train, Part("leak", [one])], held_out)
    assert checks["same_prompt/prompts_test"].level == "fail"
    assert checks["same_prompt/prompts_test"].offenders[0].place.endswith("prompts/test.jsonl line 8")
    # Three in a hundred, with their last words changed.
    changed = [TextRow(f"leak line {n}", row.prompt[:-1] + " in all", ()) for n, row in enumerate(test.rows[::32])]
    checks = found([*train, Part("leak", changed)], held_out)
    assert checks["same_prompt/prompts_test"].level == "ok"
    assert checks["contamination/prompts_test"].level == "fail"
    assert {check.level for name, check in checks.items() if name.startswith("contamination/sft")} <= {"ok", "warn"}


# Within a set.


def test_duplicates_are_those_of_prompt_and_answer() -> None:
    rows = [
        TextRow("line 1", "Why?", ("So.",)),
        TextRow("line 2", "Why?", ("No.",)),
        TextRow("line 3", "why", ("so!",)),
        TextRow("line 4", STORY, ()),
        TextRow("line 5", STORY.replace("on her way", "upon her way"), ()),
    ]
    checks = found([Part("train", rows)], [], near_from=0.5)
    assert checks["duplicates/train_exact"].value == 0.2
    assert checks["duplicates/train_exact"].offenders[0][::2] == ("line 3", "says the same as line 1")
    # 18 n-grams of 5 words each; the word in the middle stands in 5 of them: 13 of 23.
    assert checks["duplicates/train_near"].offenders[0][::2] == ("line 5", "57% similar to line 4")
    assert checks["duplicates/train_near"].level == "fail"


def test_empty_and_very_long_answers() -> None:
    rows = [TextRow("line 1", "Why?", (" \n",)), TextRow("line 2", "", ("So.",)), TextRow("line 3", "Why?", ("x" * 9,))]
    rows += [TextRow("line 4", "Why", ("x" * 12,))]
    checks = found([Part("train", rows)], [], long_from=9)
    assert [offender.why for offender in checks["empty/train"].offenders] == [
        "an answer is empty",
        "the prompt is empty",
    ]
    assert checks["empty/train"].value == checks["long/train"].value == 0.5
    assert [offender.why for offender in checks["long/train"].offenders] == ["12 characters", "9 characters"]


def test_labels_that_contradict_each_other() -> None:
    rows = pairs(
        ("q", "a", "b"), ("q", "b", "c"), ("other", "b", "a"), ("q", "d", "c"), ("q", "e", "e"), ("r", "x", "y")
    )
    assert [(offender.place, offender.excerpt, offender.why) for offender in label_conflicts(rows)] == [
        ("line 1", "b", "is rejected here and chosen in line 2"),
        ("line 2", "b", "is chosen here and rejected in line 1"),
    ]
    checks = found([Part("train", rows)], [])
    assert checks["conflicts/train"].value == pytest.approx(2 / 6)
    assert checks["identical/train"].value == pytest.approx(1 / 6)
    assert checks["identical/train"].offenders[0].place == "line 5"


def test_length_bias_by_hand() -> None:
    # Chosen 3, 2, 1, rejected 1, 2, 2 characters: longer, equal, shorter; lengths' mean 11/6, labels' 1/2.
    longer, correlation = length_bias(pairs(("q", "aaa", "a"), ("q", "aa", "bb"), ("q", "a", "bb")))
    assert longer == 0.5
    # Sum of products 6 - 6 · 11/6 · 1/2 = 0.5; sums of squares 23 - 6 · (11/6)² = 17/6 and 3 - 6/4 = 3/2.
    assert correlation == pytest.approx(0.5 / (17 / 6 * 3 / 2) ** 0.5)
    assert length_bias(pairs(("q", "a", "b"))) == (0.5, None)


def test_a_rule_of_length_counts_in_both_directions() -> None:
    rows = pairs(*[("q", "a", "bbb")] * 19, ("q", "aaa", "b"))
    check = found([Part("train", rows)], [], max_length_rule={"warn": 0.6, "fail": 0.94})["length_rule/train"]
    assert check.value == 0.95
    assert check.level == "fail"
    assert "'the shorter answer is better'" in check.meaning


def test_a_check_without_thresholds_is_left_out() -> None:
    checks = found([prompts("train", "a")], [prompts("test", "a")], max_same_prompt=None, max_empty=None)
    assert set(checks) == {"contamination/test", "duplicates/train_exact", "duplicates/train_near"} | {
        "long/train",
        "long/test",
    }


# Thresholds, and what is said.


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
