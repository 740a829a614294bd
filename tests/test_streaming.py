"""Rows that are tokenised as they are read: the same rows, batches and results as those of a file read beforehand."""

import json
import logging
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from helpers_data import bot, make_tokenizer, user, write_jsonl
from tiny import curve, run, write_base, write_preference, write_sft

from posttrain.config import DatasetSource, DPOConfig, RewardConfig, SFTConfig
from posttrain.data import stream as stream_module
from posttrain.data.prepare import PreparedData, prepare
from posttrain.data.stream import Stream, StreamedBatches
from posttrain.errors import UserError

CONFIGS = {"sft": SFTConfig, "preference": DPOConfig, "reward": RewardConfig}
STREAMED: dict[str, Any] = {"dataset_streaming": True, "max_steps": 3}
TOKENIZER = make_tokenizer()


def prepared(kind: str, **flags: Any) -> PreparedData:
    config = CONFIGS[kind](model_name_or_path="model", explicit=frozenset(flags), **flags)
    config.validate()
    data = prepare(config, TOKENIZER, kind, "train")
    assert data is not None
    return data


def as_plain(row: dict[str, Any]) -> dict[str, Any]:
    values = {name: np.asarray(value).tolist() for name, value in row.items()}
    return values | {"margin": np.float32(values["margin"] or 0).item()} if "margin" in values else values


def stream_of(kind: str = "sft", **flags: Any) -> Stream:
    stream = prepared(kind, **flags, **STREAMED).dataset
    assert isinstance(stream, Stream)
    return stream


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "WINDOW", 4)
    monkeypatch.setattr(stream_module, "LARGE_WINDOW", 8)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """21 documents of different lengths; all their texts differ."""
    return write_jsonl(
        tmp_path / "texts.jsonl", [{"text": f"{number:02d}" + "x" * (number % 7)} for number in range(21)]
    )


def words_of(rows: list[dict[str, Any]]) -> list[str]:
    return [TOKENIZER.decode(row["input_ids"]) for row in rows]


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_rows_and_counts_of_a_file_read_beforehand(kind: str, tmp_path: Path, small_windows: None) -> None:
    rows: list[dict[str, Any]] = []
    for number in range(11):
        prompt, long = [user(f"question {number}")], "and more" * 4 * (number % 3)
        rows.append({"prompt": prompt, "chosen": [bot(f"yes {long}")], "rejected": [bot("no")], "margin": 0.1 * number})
        if kind == "sft":
            rows[-1] = {"prompt": prompt, "completion": [bot(f"yes {long}")]}
    name = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    whole = prepared(kind, dataset_name=name, max_length=70)
    data = prepared(kind, dataset_name=name, max_length=70, **STREAMED)
    assert [as_plain(row) for row in data.dataset] == [as_plain(row) for row in whole.dataset]
    assert 0 < len(whole.dataset) <= 11
    data.dataset[len(whole.dataset) - 1]
    assert {name: count for name, count in data.counts.items() if count} == {
        name: count for name, count in whole.counts.items() if count
    }
    assert whole.counts.get("rows_truncated") or whole.counts.get("rows_dropped_pair_too_long")


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
def test_packing_in_one_window_is_packing(strategy: str, texts: Path) -> None:
    flags = {"dataset_name": str(texts), "packing": True, "packing_strategy": strategy, "max_length": 13}
    whole, data = prepared("sft", **flags), prepared("sft", **flags, **STREAMED)
    assert [as_plain(row) for row in data.dataset] == [as_plain(row) for row in whole.dataset]
    data.dataset[0]
    assert data.counts == {name: count for name, count in whole.counts.items() if name in data.counts}


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
def test_packing_in_several_windows_loses_nothing(strategy: str, texts: Path, small_windows: None) -> None:
    flags = {"dataset_name": str(texts), "packing": True, "packing_strategy": strategy, "max_length": 13}
    data = prepared("sft", **flags, **STREAMED)
    rows = list(data.dataset)
    assert all(sum(row["lengths"]) == len(row["input_ids"]) <= 13 for row in rows)
    starts = np.concatenate([np.cumsum(row["lengths"])[:-1] + 13 * i for i, row in enumerate(rows)])
    masks = np.concatenate([np.pad(row["loss_mask"], (0, 13 - len(row["loss_mask"]))) for row in rows])
    assert len(starts) and not masks[starts].any()  # no document predicts the first token of the next
    data.dataset[len(rows) - 1]
    tokens = sum(len(row["input_ids"]) for row in rows)
    assert data.counts["tokens"] == tokens and data.counts["rows"] == len(rows)
    assert tokens + data.counts["tokens_left_out"] == sum(3 + number % 7 for number in range(21))


def test_shuffled_within_windows(texts: Path, small_windows: None) -> None:
    def order(passes: int, **flags: Any) -> list[str]:
        stream = stream_of(dataset_name=str(texts), shuffle_dataset=True, **flags)
        return words_of([stream[number] for number in range(21 * passes)])

    in_file = words_of(list(stream_of(dataset_name=str(texts))))
    both = order(2)
    first, second = both[:21], both[21:]
    assert first != in_file and first != second and order(1) == first and order(1, seed=1) != first
    for start, stop in ((0, 8), (8, 16), (16, 21)):
        assert sorted(first[start:stop]) == sorted(second[start:stop]) == in_file[start:stop]


def test_shuffled_files(tmp_path: Path, small_windows: None) -> None:
    for shard in range(6):
        rows = [{"text": f"{shard}.{number}"} for number in range(4)]
        write_jsonl(tmp_path / f"train-{shard:05d}-of-00006.jsonl", rows)
    stream = stream_of(dataset_name=str(tmp_path), shuffle_dataset=True)
    shards = [word[0] for word in words_of([stream[number] for number in range(48)])]
    firsts = [list(dict.fromkeys(shards[start : start + 24])) for start in (0, 24)]
    assert sorted(shards[:24]) == sorted(shards[24:]) and firsts[0] != firsts[1]
    assert max(shards.index(shard) for shard in "012345") >= 16  # not all in the first windows


def test_tables_and_folders(tmp_path: Path, small_windows: None) -> None:
    rows = [{"text": f"text {number}"} for number in range(9)]
    table = datasets.Dataset.from_list(rows)
    table.save_to_disk(tmp_path / "saved")
    (tmp_path / "parts").mkdir()
    for part in range(3):
        table.select(range(3 * part, 3 * part + 3)).to_parquet(tmp_path / "parts" / f"train-{part}.parquet")
    for name in ("saved", "parts"):
        stream = stream_of(dataset_name=str(tmp_path / name))
        assert words_of(list(stream)) == [f"text {number}<|end|>" for number in range(9)]
        assert stream_of(dataset_name=str(tmp_path / name))._fingerprint == stream._fingerprint
        place = stream_module.Place(first=8, rows_read=8)
        note = {"place": asdict(place), "counts": {}, "source": stream.source.digest(), "lengths_of_parts": {}}
        (tmp_path / "stream.json").write_text(json.dumps(note))
        stream.load_place(tmp_path)
        assert words_of([stream[8], stream[9]]) == ["text 8<|end|>", "text 0<|end|>"]


def test_the_first_row_follows_the_last(texts: Path, caplog: pytest.LogCaptureFixture) -> None:
    stream = stream_of(dataset_name=str(texts))
    with caplog.at_level(logging.INFO, logger="posttrain"):
        words = words_of([stream[number] for number in range(50)])
    assert words[21:42] == words[:21] and words[42:] == words[:8]
    assert "the first row follows again" in caplog.text
    stream.report()


@pytest.mark.parametrize("flags", [{}, {"shuffle_dataset": True}, {"packing": True, "max_length": 13}])
def test_goes_on_where_a_checkpoint_was(flags: Any, texts: Path, tmp_path: Path, small_windows: None) -> None:
    whole = stream_of(dataset_name=str(texts), **flags)
    expected = [as_plain(whole[number]) for number in range(40)]
    for stop in (1, 8, 9, 22, 30):
        before, after = (stream_of(dataset_name=str(texts), **flags) for _ in range(2))
        for number in range(stop):
            before[number]
        before.save_place(tmp_path / "checkpoint")
        after.load_place(tmp_path / "checkpoint")
        assert after.counts == before.counts
        assert [as_plain(after[number]) for number in range(stop, 40)] == expected[stop:]
        assert after.counts == whole.counts
        assert [as_plain(after[number]) for number in range(40)] == expected  # from the beginning, too
    assert json.loads((tmp_path / "checkpoint" / "stream.json").read_text())["place"]["rows_read"] > 0


def test_two_processes_share_the_rows(texts: Path, small_windows: None) -> None:
    def batches(batch_size: int, world_size: int, rank: int) -> list[list[str]]:
        stream = stream_of(dataset_name=str(texts))
        own = StreamedBatches(stream, words_of, batch_size, world_size, rank, 5)
        return [own[index] for index in range(len(own))]

    one = batches(4, 1, 0)
    two = list(zip(batches(2, 2, 0), batches(2, 2, 1), strict=True))
    assert [first + second for first, second in two] == one
    assert len({word for batch in one for word in batch}) == 20


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("model") / "base")


@pytest.mark.parametrize("method", ["sft", "dpo", "reward"])
def test_a_streamed_run_is_that_of_a_file_in_its_order(method: str, base: Path, tmp_path: Path) -> None:
    data = (write_sft if method == "sft" else write_preference)(tmp_path / "rows.jsonl")
    words = ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2", "--max_steps", "4"]
    whole = run(method, base, data, tmp_path / "a", *words, "--train_sampling_strategy", "sequential")
    streamed = run(method, base, data, tmp_path / "b", *words, "--dataset_streaming")
    assert curve(streamed, "loss", "grad_norm", "num_tokens") == curve(whole, "loss", "grad_norm", "num_tokens")
    weights = [(tmp_path / side / "model.safetensors").read_bytes() for side in "ab"]
    assert weights[0] == weights[1]


def test_a_streamed_run_goes_on_from_a_checkpoint(base: Path, tmp_path: Path, small_windows: None) -> None:
    """With packing and shuffling, in the second pass of the data, with evaluations on its first rows."""
    data = write_sft(tmp_path / "rows.jsonl", count=24)
    words = ["--max_steps", "8", "--save_strategy", "steps", "--save_steps", "5", "--per_device_train_batch_size", "3"]
    words += ["--packing", "--max_length", "128", "--shuffle_dataset", "--dataset_streaming", "--test_split_size", "4"]
    words += ["--eval_strategy", "steps", "--eval_steps", "4", "--metrics_file", str(tmp_path / "metrics.json")]
    whole = run("sft", base, data, tmp_path / "a", *words)
    before = json.loads((tmp_path / "metrics.json").read_text())
    shutil.copytree(tmp_path / "a" / "checkpoint-5", tmp_path / "b" / "checkpoint-5")
    assert json.loads((tmp_path / "b" / "checkpoint-5" / "stream.json").read_text())["place"]["passes"] == 1
    resumed = run("sft", base, data, tmp_path / "b", *words, "--resume_from_checkpoint")
    assert curve(resumed, "loss", "grad_norm", "num_tokens", "epoch") == curve(
        whole, "loss", "grad_norm", "num_tokens", "epoch"
    )
    assert curve(resumed, "eval_loss") == curve(whole, "eval_loss") and len(curve(whole, "eval_loss")) == 2
    weights = [(tmp_path / side / "model.safetensors").read_bytes() for side in "ab"]
    assert weights[0] == weights[1]
    after = json.loads((tmp_path / "metrics.json").read_text())
    assert {n: c for n, c in after.items() if n.startswith("data/")} == {
        n: c for n, c in before.items() if n.startswith("data/")
    }
    assert before["data/rows_read"] > 20


def test_the_first_rows_are_held_out(texts: Path) -> None:
    stream = stream_of(dataset_name=str(texts), test_split_size=5)
    assert words_of(list(stream))[0].startswith("05") and stream[16]["input_ids"] is stream[16]["input_ids"]
    config = SFTConfig(model_name_or_path="model", dataset_name=str(texts), test_split_size=5, **STREAMED)
    held_out = prepare(config, TOKENIZER, "sft", "test")
    assert held_out is not None
    assert [word[:2] for word in words_of(list(held_out.dataset))] == ["00", "01", "02", "03", "04"]
    with pytest.raises(UserError, match="no rows to train on"):
        stream_of(dataset_name=str(texts), test_split_size=21)[0]


def test_a_streamed_mixture(tmp_path: Path, small_windows: None) -> None:
    for name, count in (("a", 12), ("b", 4)):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": f"{name}{number}", "other": 1} for number in range(count)])

    def mixed(*fractions: float | None) -> list[str]:
        paths = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
        parts = [DatasetSource(path=p, fraction=f, columns=["text"]) for p, f in zip(paths, fractions, strict=True)]
        stream = prepared("sft", datasets=parts, streaming=True, max_steps=3).dataset
        return [word.removesuffix("<|end|>") for word in words_of(list(stream))]

    one_by_one = [f"a{number}" for number in range(12)] + [f"b{number}" for number in range(4)]
    assert mixed(None, None) == one_by_one
    assert mixed(2, 1) == "a0 b0 a1 a2 b1 a3 a4 b2 a5 a6 b3 a7 a8".split()  # until b, of 4 rows, has none left


def test_mistakes(texts: Path) -> None:
    rows = [{"text": "good"}] * 6 + [{"text": 3}]
    broken = write_jsonl(texts.parent / "broken.jsonl", rows)
    with pytest.raises(UserError, match=r"broken\.jsonl line 7"):
        stream_of(dataset_name=str(broken))[0]
    short = stream_of("sft", dataset_name=str(texts), max_length=1)
    with pytest.raises(UserError, match="none is left to train on"):
        short[0]
    for flags, expected in (
        ({"max_steps": -1}, "dataset_streaming needs max_steps"),
        ({"test_split_size": 0.1}, "give a whole number"),
        ({"train_sampling_strategy": "group_by_length"}, "picks among all rows"),
    ):
        with pytest.raises(UserError, match=expected):
            prepared("sft", dataset_name=str(texts), **(STREAMED | flags))
    with pytest.raises(UserError, match="precompute_ref_log_probs"):
        prepared("preference", dataset_name=str(texts), precompute_ref_log_probs=True, **STREAMED)


def test_a_changed_file_is_another_stream(texts: Path) -> None:
    def fingerprint(**flags: Any) -> str:
        return stream_of(dataset_name=str(texts), **flags)._fingerprint

    before = fingerprint()
    assert fingerprint() == before and len({before, fingerprint(shuffle_dataset=True), fingerprint(max_length=9)}) == 3
    texts.write_text(texts.read_text() + '{"text": "more"}\n')
    assert fingerprint() != before
