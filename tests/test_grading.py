"""Answers and the numbers in them."""

from decimal import Decimal

import pytest

from posttrain.grading import final_answer, is_correct, read_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("72", "72"),
        (" 72. ", "72"),
        ("1,234", "1234"),
        ("12,345,678.50", "12345678.5"),
        ("$5", "5"),
        ("-$5.25", "-5.25"),
        ("$-5.25", "-5.25"),
        ("+3", "3"),
        (".5", "0.5"),
        ("007", "7"),
    ],
)
def test_numbers_as_people_write_them(text: str, number: str) -> None:
    assert read_number(text) == Decimal(number)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "-",
        "$",
        ".",
        "--5",
        "-$-5",
        "1,23",
        "12,34,567",
        "1 2",
        "5 apples",
        "1e3",
        "½",
        "٣",
        "nan",
        "1/2",
        "1.2.3",
    ],
)
def test_what_is_no_number(text: str) -> None:
    assert read_number(text) is None


def test_the_last_mark_counts_up_to_the_end_of_its_line() -> None:
    assert final_answer("2+3=5\n#### 5") == 5
    assert final_answer("#### 4\nNo, wait.\n####5\n") == 5
    assert final_answer("#### 5\nThat is all.") == 5


def test_without_a_mark_or_a_number_behind_it_there_is_no_answer() -> None:
    assert final_answer("The answer is 5") is None
    assert final_answer("") is None
    assert final_answer("####") is None
    assert final_answer("####\n5") is None
    assert final_answer("#### 5 or 6") is None
    assert final_answer("#### 5\n#### none") is None  # taken back


def test_an_answer_is_right_when_the_values_are_equal() -> None:
    assert is_correct("so #### $1,000.00", "1000")
    assert is_correct("#### 0.5", ".50")
    assert is_correct("#### -0", "0")
    assert not is_correct("#### 1001", "1000")
    assert not is_correct("1000", "1000")


def test_the_reference_may_be_a_worked_solution() -> None:
    assert is_correct("#### 72", "48/2 = <<48/2=24>>24 clips\n48+24 = 72 clips\n#### 72")


@pytest.mark.parametrize("reference", ["", "seventy-two", "so 72", "#### many"])
def test_a_reference_without_a_number_is_a_mistake(reference: str) -> None:
    with pytest.raises(ValueError, match="neither a number nor a solution"):
        is_correct("#### 72", reference)
