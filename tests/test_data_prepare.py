"""From a file to rows of tokens: masks by hand, cuts, packing, counts, the cache, and mistakes."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_data import MARKED_TEMPLATE, PLAIN_TEMPLATE, bot, make_tokenizer, shown, user, write_jsonl

from posttrain.config import DPOConfig, SFTConfig
from posttrain.data import build
from posttrain.data.prepare import PreparedData, check, prepare
from posttrain.errors import UserError

TALK = [user("a?"), bot("b"), user("c?"), bot("d")]


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., PreparedData]:
    """Writes rows to a file and prepares it; `tokenizer` aside, the keywords are flags."""

    def run(rows: list[Any], tokenizer: Any = None, kind: str = "sft", **flags: Any) -> PreparedData:
        path = write_jsonl(tmp_path / "rows.jsonl", rows)
        method = SFTConfig if kind == "sft" else DPOConfig
        config = method(model_name_or_path="m", dataset_name=str(path), cache_dir=str(tmp_path / "cache"), **flags)
        data = prepare(config, tokenizer or make_tokenizer(), kind, config.dataset_train_split)
        assert data is not None
        return data

    return run


def texts(data: PreparedData, tokenizer: Any = None) -> list[str]:
    tokenizer = tokenizer or make_tokenizer()
    return [shown(tokenizer, row["input_ids"], row["loss_mask"]) for row in data.dataset]


@pytest.mark.parametrize(
    ("row", "flags", "expected"),
    [
        ({"text": "abc"}, {}, "a[bc<|end|>]"),
        ({"text": "abc<|end|>"}, {}, "a[bc<|end|>]"),
        ({"body": "abc"}, {"dataset_text_field": "body"}, "a[bc<|end|>]"),
        ({"prompt": "ab", "completion": "cd"}, {}, "ab[cd<|end|>]"),
        ({"prompt": "", "completion": "cd"}, {}, "c[d<|end|>]"),
        ({"prompt": "ab", "completion": "cd"}, {"completion_only_loss": False}, "a[bcd<|end|>]"),
        ({"messages": TALK[:2]}, {}, "<|user|>[a?<|end|>\n<|bot|>b<|end|>\n]"),
        (
            {"conversations": [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b"}]},
            {},
            "<|user|>[a?<|end|>\n<|bot|>b<|end|>\n]",
        ),
        (
            {"messages": TALK},
            {"assistant_only_loss": True},
            "<|user|>a?<|end|>\n<|bot|>[b<|end|>]\n<|user|>c?<|end|>\n<|bot|>[d<|end|>]\n",
        ),
        ({"prompt": TALK[:1], "completion": TALK[1:2]}, {}, "<|user|>a?<|end|>\n<|bot|>[b<|end|>\n]"),
        (
            {"prompt": TALK[:3], "completion": TALK[3:]},
            {"assistant_only_loss": True},
            "<|user|>a?<|end|>\n<|bot|>b<|end|>\n<|user|>c?<|end|>\n<|bot|>[d<|end|>]\n",
        ),
        (
            {"prompt": TALK[:3], "completion": TALK[3:]},
            {"assistant_only_loss": True, "completion_only_loss": False},
            "<|user|>a?<|end|>\n<|bot|>[b<|end|>]\n<|user|>c?<|end|>\n<|bot|>[d<|end|>]\n",
        ),
        ({"prompt": "abc", "completion": "de"}, {"max_length": 4, "truncation_mode": "keep_start"}, "abc[d]"),
        ({"prompt": "abc", "completion": "de"}, {"max_length": 4, "truncation_mode": "keep_end"}, "c[de<|end|>]"),
        ({"prompt": "abc", "completion": "de"}, {"max_length": 2, "truncation_mode": "keep_end"}, "e[<|end|>]"),
    ],
)
def test_what_is_trained_on(prepared: Callable[..., PreparedData], row: Any, flags: Any, expected: str) -> None:
    assert texts(prepared([row], **flags)) == [expected]


def test_markers_and_boundaries_give_one_mask(prepared: Callable[..., PreparedData]) -> None:
    rows = [{"messages": TALK}, {"messages": [user("x"), bot("y z")]}]
    plain, marked = (
        prepared(rows, make_tokenizer(template), assistant_only_loss=True).dataset.to_list()
        for template in (PLAIN_TEMPLATE, MARKED_TEMPLATE)
    )
    assert plain == marked


def test_tokens_that_merge_across_the_boundary(prepared: Callable[..., PreparedData]) -> None:
    """The characters ab are one token: the prompt's last token, a, is not there before the completion bc."""
    tokenizer = make_tokenizer(merges=[("a", "b")])
    data = prepared([{"prompt": "xa", "completion": "bc"}], tokenizer)
    assert texts(data, tokenizer) == ["x[abc<|end|>]"]
    assert len(data.dataset[0]["input_ids"]) == 4
    assert data.counts["rows_prompt_not_prefix"] == 1


def test_rows_of_tokens(prepared: Callable[..., PreparedData]) -> None:
    ids = [10, 11, 12, 13]
    rows = [
        {"input_ids": ids},
        {"input_ids": ids, "labels": [-100, -100, 12, 13]},
        {"input_ids": ids, "completion_mask": [0, 0, 1, 1], "assistant_masks": [0, 1, 1, 0]},
    ]
    masks = [row["loss_mask"] for row in prepared(rows).dataset]
    assert masks == [[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 1, 0]]
    assert prepared(rows[2:], completion_only_loss=False).dataset[0]["loss_mask"] == [0, 1, 1, 0]
    with pytest.raises(UserError, match="token outside the vocabulary"):
        prepared([{"input_ids": [10, 10_000]}])


def test_bos_and_eos_stand_once(prepared: Callable[..., PreparedData]) -> None:
    tokenizer = make_tokenizer("<bos>" + PLAIN_TEMPLATE, adds_bos=True, adds_eos=True)
    rows = [{"text": "ab"}, {"text": "<bos>ab"}, {"prompt": "a", "completion": "b"}, {"messages": TALK[:2]}]
    assert texts(prepared(rows, tokenizer), tokenizer) == [
        "<bos>[ab<|end|>]",
        "<bos>[ab<|end|>]",
        "<bos>a[b<|end|>]",
        "<bos>[<|user|>a?<|end|>\n<|bot|>b<|end|>\n]",
    ]


def test_template_options_and_tools_of_a_row(prepared: Callable[..., PreparedData]) -> None:
    tokenizer = make_tokenizer("{{ tools[0].name if tools else '-' }}{{ mood }}{{ messages[-1].content }}<|end|>")
    rows = [
        {"messages": TALK, "tools": [{"name": "f"}], "chat_template_kwargs": {"mood": "m"}},
        {"messages": TALK, "tools": '[{"name": "g"}]'},
        {"messages": TALK},
    ]
    assert texts(prepared(rows, tokenizer), tokenizer) == ["f[md<|end|>]", "g[d<|end|>]", "-[d<|end|>]"]


def test_what_is_dropped_and_cut_is_counted(
    prepared: Callable[..., PreparedData], caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        {"prompt": "abcd", "completion": "e"},  # its prompt fills max_length
        {"prompt": "ab", "completion": "cdefg"},  # loses 4 of 8 tokens
        {"prompt": "a", "completion": "b"},
        {"text": ""},  # nothing but EOS
    ]
    data = prepared(rows, max_length=4)
    assert texts(data) == ["ab[cd]", "a[b<|end|>]"]
    assert data.counts == {
        "rows_read": 4,
        "rows": 2,
        "tokens": 7,
        "targets": 4,
        "eos_targets": 1,
        "rows_truncated": 1,
        "tokens_truncated": 4,
        "rows_prompt_not_prefix": 0,
        "rows_dropped_no_target": 1,
        "rows_dropped_prompt_too_long": 1,
    }
    assert "1 of 4 rows cut to --max_length 4, 4 tokens lost" in caplog.text
    assert "1 of 4 rows dropped, the prompt fills --max_length 4 and leaves no token to train on" in caplog.text
    assert "rows.jsonl line 1)" in caplog.text and "rows.jsonl line 4)" in caplog.text


def test_nothing_left_is_an_error(prepared: Callable[..., PreparedData]) -> None:
    with pytest.raises(UserError, match="of 2 rows none is left to train on: the prompt fills --max_length 2"):
        prepared([{"prompt": "abc", "completion": "d"}] * 2, max_length=2)
    with pytest.raises(UserError, match="none is left"):
        prepared([{"messages": [user("a")]}], assistant_only_loss=True, packing=True)


def test_a_warning_when_the_end_is_never_trained(
    prepared: Callable[..., PreparedData], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):  # made, and read back
        caplog.clear()
        data = prepared([{"messages": TALK}], make_tokenizer(eos="<eos>"), assistant_only_loss=True)
        assert data.counts["eos_targets"] == 0
        warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
        assert len(warnings) == 1
        assert "'<eos>' is never trained on" in warnings[0] and "--eos_token '<|end|>'" in warnings[0]
    caplog.clear()
    prepared([{"messages": TALK}])
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]


DOCUMENTS = [
    {"input_ids": list(range(10 * start + 10, 10 * start + 10 + n))} for start, n in enumerate([5, 9, 3, 2, 7, 4])
]


@pytest.mark.parametrize("strategy", ["bfd_split", "wrapped"])
def test_packing_keeps_every_token_once(prepared: Callable[..., PreparedData], strategy: str) -> None:
    data = prepared(DOCUMENTS, packing=True, packing_strategy=strategy, max_length=6)
    found = sorted(token for row in data.dataset for token in row["input_ids"])
    left_out = data.counts["tokens_left_out"]
    given = sorted(token for document in DOCUMENTS for token in document["input_ids"])
    assert set(found) <= set(given) and len(set(found)) == len(found) == len(given) - left_out
    # A piece of one token has no target. bfd_split: 7 = 6 + 1. wrapped, rows of 6 from 5 9 3 2 7 4 tokens:
    # 5+1, 6, 2+3+1, 1+5, 2+4.
    assert left_out == {"bfd_split": 1, "wrapped": 3}[strategy]


def _segments(data: PreparedData) -> list[list[list[int]]]:
    rows = []
    for row in data.dataset:
        ends = np.cumsum(row["lengths"])
        assert ends[-1] == len(row["input_ids"]) == len(row["loss_mask"])
        rows.append([list(piece) for piece in np.split(row["input_ids"], ends[:-1])])
        masks = [piece.tolist() for piece in np.split(row["loss_mask"], ends[:-1])]
        assert masks == [[0] + [1] * (len(piece) - 1) for piece in rows[-1]]
    return rows


def test_segments_never_mix_documents(prepared: Callable[..., PreparedData]) -> None:
    for strategy in ("bfd", "bfd_split", "wrapped"):
        data = prepared(DOCUMENTS, packing=True, packing_strategy=strategy, max_length=6)
        for row in _segments(data):
            assert sum(map(len, row)) <= 6
            for segment in row:
                assert segment == list(range(segment[0], segment[0] + len(segment)))
                assert len({token // 10 for token in segment}) == 1
    bfd = prepared(DOCUMENTS, packing=True, max_length=6)
    assert bfd.counts["tokens_truncated"] == 3 + 1 and bfd.counts["rows_truncated"] == 2
    assert [[len(segment) for segment in row] for row in _segments(bfd)] == [[5], [6], [3], [2, 4], [6]]


def test_packing_spans_the_batches_of_tokenising(
    prepared: Callable[..., PreparedData], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_ROWS_AT_ONCE", 2)
    data = prepared([{"text": "abc"}] * 9, packing=True, max_length=12)
    assert [len(row["lengths"]) for row in data.dataset] == [3, 3, 3]
    assert data.counts["tokens"] == 36


def test_shuffling_is_seeded(prepared: Callable[..., PreparedData]) -> None:
    rows = [{"text": f"{number:03d}"} for number in range(50)]
    for packing in (False, True):
        orders = [
            texts(prepared(rows, shuffle_dataset=True, packing=packing, max_length=8, seed=seed)) for seed in (1, 1, 2)
        ]
        assert orders[0] == orders[1] != orders[2]
        plain = texts(prepared(rows, packing=packing, max_length=8))
        assert plain == sorted(plain) != orders[0]


def test_evaluation_may_be_packed_differently(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": "abc"}] * 4)
    flags = {"dataset_name": str(tmp_path), "cache_dir": str(tmp_path / "cache"), "max_length": 8, "packing": True}
    for eval_packing, expected in ((None, 2), (True, 2), (False, 4)):
        config = SFTConfig(model_name_or_path="m", eval_packing=eval_packing, **flags)
        sizes = [prepare(config, make_tokenizer(), "sft", split) for split in ("train", "test")]
        assert [len(data.dataset) for data in sizes if data] == [2, expected]


def test_the_cache(prepared: Callable[..., PreparedData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"messages": TALK}]
    first = prepared(rows)
    entries = tmp_path / "cache" / "tokenised"
    assert sorted(entry.suffix for entry in entries.iterdir()) == ["", ".lock"]  # nothing half done is left
    with monkeypatch.context() as patch:
        patch.setitem(build._TOKENISE, "sft", lambda *_: pytest.fail("tokenised again"))
        second = prepared(rows)
    assert second.dataset.to_list() == first.dataset.to_list() and second.counts == first.counts
    assert second.dataset._fingerprint == first.dataset._fingerprint
    others = [
        prepared(rows, max_length=5),
        prepared(rows, make_tokenizer(MARKED_TEMPLATE)),
        prepared(rows, make_tokenizer(merges=[("a", "?")])),
        prepared([{"messages": TALK[:2]}]),
    ]
    assert len({data.dataset._fingerprint for data in [first, *others]}) == 5
    assert first.dataset.cache_files  # mapped, not loaded


def test_a_process_that_was_killed_leaves_nothing_in_the_way(
    prepared: Callable[..., PreparedData], tmp_path: Path
) -> None:
    key = prepared([{"text": "abc"}]).dataset._fingerprint
    entries = tmp_path / "cache" / "tokenised"
    (entries / key).rename(entries / f"{key}.part")
    (entries / f"{key}.part" / "rows.arrow").write_bytes(b"half")
    assert texts(prepared([{"text": "abc"}])) == ["a[bc<|end|>]"]


def test_all_mistakes_of_a_file_are_reported_at_once(
    prepared: Callable[..., PreparedData], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_ROWS_AT_ONCE", 3)
    good = {"prompt": "a", "completion": "b"}
    rows = [good, {"prompt": "a", "completion": ""}, good, good, {"prompt": 1, "completion": "b"}] + [good] * 3
    rows += [{"prompt": "a", "completion": ""}] * 4
    with pytest.raises(UserError) as caught:
        prepared(rows)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("rows.jsonl: 6 of 12 rows cannot be used")
    assert lines[1].startswith("empty completion in 'completion' (") and "and 2 more" in lines[1]
    assert "rows.jsonl line 2," in lines[1] and "rows.jsonl line 9," in lines[1]
    assert lines[2].startswith("wrong type in 'prompt' (") and "rows.jsonl line 5)" in lines[2]


@pytest.mark.parametrize(
    ("row", "tokenizer", "flags", "message"),
    [
        ({"messages": TALK}, make_tokenizer(None), {}, "no chat template .*--chat_template_path"),
        ({"text": "abc"}, None, {"assistant_only_loss": True}, "no messages for assistant_only_loss"),
        ({"messages": TALK}, None, {"completion_only_loss": True}, "no completion for completion_only_loss"),
        ({"input_ids": [9, 9]}, None, {"completion_only_loss": True}, "no completion for completion_only_loss"),
        ({"text": "abc"}, None, {"packing": True, "max_length": None}, "--packing fills rows"),
        ({"text": "a\ud83d"}, None, {}, "half a character"),
        ({"messages": [user("a\ud83d")]}, None, {}, "half a character"),
    ],
)
def test_flags_and_tokenizers_that_do_not_fit(
    prepared: Callable[..., PreparedData], tmp_path: Path, row: Any, tokenizer: Any, flags: Any, message: str
) -> None:
    path = tmp_path / "escaped.jsonl"
    import json

    path.write_text(json.dumps(row))
    config = SFTConfig(model_name_or_path="m", dataset_name=str(path), cache_dir=str(tmp_path), **flags)
    with pytest.raises(UserError, match=message):
        prepare(config, tokenizer or make_tokenizer(), "sft", "train")


def test_no_test_split(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "abc"}])
    config = SFTConfig(model_name_or_path="m", dataset_name=str(path), cache_dir=str(tmp_path))
    assert prepare(config, make_tokenizer(), "sft", "test") is None
    config.dataset_train_split, config.test_split_size = "test", 0.5
    with pytest.raises(UserError, match="--dataset_test_split"):
        prepare(config, make_tokenizer(), "sft", "test")


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "abc"}])
    config = SFTConfig(model_name_or_path="m", dataset_name=str(path), cache_dir=str(path))
    with pytest.raises(UserError, match="--cache_dir"):
        prepare(config, make_tokenizer(), "sft", "train")


def test_early_check_needs_no_tokenizer(tmp_path: Path) -> None:
    rows = [{"text": "a"}] * 1500 + [{"text": 3}]
    config = SFTConfig(model_name_or_path="m", dataset_name=str(write_jsonl(tmp_path / "rows.jsonl", rows)))
    check(config, "sft")  # looks at the beginning only
    with pytest.raises(UserError, match=r"1,000 of the first 1,000 rows(.|\n)*wrong columns for preference"):
        check(DPOConfig(model_name_or_path="m", dataset_name=config.dataset_name), "preference")
    config.dataset_name = str(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="no such file"):
        check(config, "sft")
