"""Checks of data: what passes, what a planted fault does, and what is said of it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.sources import FileSource
from posttrain.embedded import task
from posttrain.errors import UserError
from posttrain.experiment.gates.data_checks import Part, check_data
from posttrain.experiment.gates.data_settings import DataLimits
from posttrain.experiment.gates.limits import Check, Offender
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
