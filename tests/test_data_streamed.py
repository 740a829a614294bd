"""Sources that are read in one direction: data sets of the hub in parts, and what they remember of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers_data import make_tokenizer

from posttrain.config import SFTConfig
from posttrain.data import stream
from posttrain.data.prepare import options_of
from posttrain.data.streamed_sources import FirstRows, StreamedTable
from posttrain.errors import UserError


def texts_of(rows: list[dict[str, Any]]) -> list[str]:
    tokenizer = make_tokenizer()
    return [tokenizer.decode(row["input_ids"]) for row in rows]


class Parts:
    """A data set in three parts, as `datasets` streams one; notes which part is asked for."""

    num_shards = 3

    def __init__(self) -> None:
        self.asked: list[int] = []

    def shard(self, number: int, index: int) -> Iterator[dict[str, Any]]:
        assert number == self.num_shards
        self.asked.append(index)
        yield from ({"text": f"{index}.{row}"} for row in range(index + 3))


@pytest.mark.parametrize("seed", [None, 1])
def test_parts_of_a_hub_data_set_that_were_read_are_not_asked_for_again(
    seed: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stream, "WINDOW", 4)
    monkeypatch.setattr(stream, "LARGE_WINDOW", 8)

    def streamed(fingerprint: str = "commit") -> tuple[Parts, stream.Stream]:
        options = options_of(SFTConfig(model_name_or_path="model"), "sft", "train")
        held_out = FirstRows(StreamedTable("org/parts", Parts(), fingerprint), 2, held_out=False)
        source = StreamedTable("org/parts", Parts(), fingerprint) if seed else held_out
        table = source if seed else held_out.source
        return table.table, stream.Stream(source, make_tokenizer(), "sft", options, seed, "stream")

    _, whole = streamed()
    expected = texts_of([whole[number] for number in range(30)])
    parts, before = streamed()
    for number in range(9):
        before[number]
    before.save_place(tmp_path)
    assert len(parts.asked) == 3
    parts, after = streamed()
    after.load_place(tmp_path)
    assert texts_of([after[9]]) == expected[9:10]
    assert parts.asked == [2] if seed is None else len(parts.asked) < 3
    assert texts_of([after[number] for number in range(10, 30)]) == expected[10:] and "not the data" not in caplog.text
    _, other = streamed("another commit")
    other.load_place(tmp_path)
    assert "not the data that the checkpoint was made with" in caplog.text


def test_a_connection_that_breaks() -> None:
    class Broken(Parts):
        def shard(self, number: int, index: int) -> Iterator[dict[str, Any]]:
            yield from super().shard(number, index)
            raise ConnectionError("the hub is gone")

    rows = StreamedTable("org/parts (train)", Broken(), "commit").rows()
    assert [next(rows).place for _ in range(3)] == [f"org/parts (train) row {number}" for number in (1, 2, 3)]
    with pytest.raises(UserError, match=r"org/parts \(train\).*after row 3"):
        next(rows)
