"""Preference pairs in tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers_data import bot, make_tokenizer, shown, user, write_jsonl

from posttrain.config import DPOConfig
from posttrain.data.prepare import PreparedData, prepare
from posttrain.errors import UserError


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., PreparedData]:
    def run(rows: list[Any], tokenizer: Any = None, **flags: Any) -> PreparedData:
        path = write_jsonl(tmp_path / "rows.jsonl", rows)
        config = DPOConfig(model_name_or_path="m", dataset_name=str(path), cache_dir=str(tmp_path / "cache"), **flags)
        data = prepare(config, tokenizer or make_tokenizer(), "preference", "train")
        assert data is not None
        return data

    return run


def texts(data: PreparedData, tokenizer: Any = None) -> list[tuple[str, str, str]]:
    tokenizer = tokenizer or make_tokenizer()
    return [
        (
            tokenizer.decode(row["prompt_ids"]),
            shown(tokenizer, row["chosen_ids"], row["chosen_mask"]),
            shown(tokenizer, row["rejected_ids"], row["rejected_mask"]),
        )
        for row in data.dataset
    ]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "ab", "chosen": "cd", "rejected": "ef"}, ("ab", "[cd<|end|>]", "[ef<|end|>]")),
        ({"prompt": "ab", "chosen": "cd<|end|>", "rejected": "e"}, ("ab", "[cd<|end|>]", "[e<|end|>]")),
        # they share a beginning: it is trained on all the same
        ({"prompt": "ab", "chosen": "xyc", "rejected": "xyd"}, ("ab", "[xyc<|end|>]", "[xyd<|end|>]")),
        ({"chosen": "ab cd", "rejected": "ab ef"}, ("ab", "[ cd<|end|>]", "[ ef<|end|>]")),
        ({"prompt": "", "chosen": "cd", "rejected": "e"}, ("", "c[d<|end|>]", "e[<|end|>]")),
        (
            {"prompt": [user("?")], "chosen": [bot("y")], "rejected": [bot("n")]},
            ("<|user|>?<|end|>\n<|bot|>", "[y<|end|>\n]", "[n<|end|>\n]"),
        ),
        (
            {"chosen": [user("?"), bot("y")], "rejected": [user("?"), bot("n")]},
            ("<|user|>?<|end|>\n<|bot|>", "[y<|end|>\n]", "[n<|end|>\n]"),
        ),
    ],
)
def test_formats(prepared: Callable[..., PreparedData], row: Any, expected: tuple[str, str, str]) -> None:
    assert texts(prepared([row])) == [expected]


def test_tokens_that_merge_across_the_boundary_of_one_side(prepared: Callable[..., PreparedData]) -> None:
    """The chosen one merges with the prompt's last character, so both sides are scored from that character on."""
    tokenizer = make_tokenizer(merges=[("a", "b")])
    data = prepared([{"prompt": "xa", "chosen": "bc", "rejected": "dc"}], tokenizer)
    assert texts(data, tokenizer) == [("x", "[abc<|end|>]", "[adc<|end|>]")]
    assert data.counts["rows_prompt_not_prefix"] == 1


def test_index_and_margin_of_a_row(prepared: Callable[..., PreparedData]) -> None:
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    data = prepared([{**pair, "prompt": "a" * 9}, pair, {**pair, "margin": 0.5}], max_length=8)
    assert [(row["row"], row["margin"]) for row in data.dataset] == [(1, None), (2, 0.5)]


def test_cut_at_the_end(prepared: Callable[..., PreparedData]) -> None:
    rows = [
        {"prompt": "abc", "chosen": "defgh", "rejected": "i"},
        {"prompt": "abcde", "chosen": "f", "rejected": "g"},  # its prompt fills max_length
    ]
    data = prepared(rows, max_length=5)
    assert texts(data) == [("abc", "[de]", "[i<|end|>]")]
    assert data.counts == {
        "rows_read": 2,
        "rows": 1,
        "tokens": 7,
        "targets": 4,
        "eos_targets": 1,
        "rows_truncated": 1,
        "tokens_truncated": 4,
        "rows_prompt_not_prefix": 0,
        "rows_dropped_no_target": 0,
        "rows_dropped_prompt_too_long": 1,
    }


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        # the same cut on both sides leaves a shorter prompt
        ({"prompt": "abc", "chosen": "de", "rejected": "fg"}, ("bc", "[de<|end|>]", "[fg<|end|>]")),
        # different cuts leave prompts that do not agree: each goes with its side, not trained on
        ({"prompt": "abc", "chosen": "de", "rejected": "fgh"}, ("", "bc[de<|end|>]", "c[fgh<|end|>]")),
        # unless they do agree
        ({"prompt": "zzz", "chosen": "de", "rejected": "fgh"}, ("z", "z[de<|end|>]", "[fgh<|end|>]")),
        # nothing of the prompt is left on one side: nothing predicts its first token
        ({"prompt": "abc", "chosen": "d", "rejected": "efghi"}, ("", "abc[d<|end|>]", "f[ghi<|end|>]")),
    ],
)
def test_cut_at_the_front(prepared: Callable[..., PreparedData], row: Any, expected: tuple[str, str, str]) -> None:
    data = prepared([row], max_length=5, truncation_mode="keep_end")
    assert texts(data) == [expected]
    assert data.counts["rows_dropped_prompt_too_long"] == 0


def test_mistakes(prepared: Callable[..., PreparedData]) -> None:
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    with pytest.raises(UserError, match=r"1 of 2 rows cannot be used\nchosen = rejected \(.*line 2\)"):
        prepared([pair, {**pair, "rejected": "b"}])
    with pytest.raises(UserError, match=r"empty completion in 'rejected' \(.*line 1\)"):
        prepared([{**pair, "rejected": ""}])
    with pytest.raises(UserError, match="no chat template"):
        prepared([{"chosen": [user("?"), bot("y")], "rejected": [user("?"), bot("n")]}], make_tokenizer(None))
    with pytest.raises(UserError, match="none is left"):
        prepared([{**pair, "prompt": "abcdef"}], max_length=4)
