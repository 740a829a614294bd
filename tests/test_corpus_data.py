"""The corpora of bad data: each case ends with a message that names the place, or trains on the right rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from corpus import data_rows, data_tables, data_templates, data_text
from helpers_corpus import LONGEST_MESSAGE, Case, outcome, texts_of

from posttrain.data import files, template

CORPORA: dict[str, dict[str, Case]] = {
    "text": data_text.CASES,
    "rows": data_rows.CASES,
    "tables": data_tables.CASES,
    "templates": data_templates.CASES,
}
ALL = [(corpus, title) for corpus, cases in CORPORA.items() for title in cases]


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files that are too large are made in a moment; 10 MB of text are none of them."""
    monkeypatch.setattr(files, "MAX_LINE", 2**25)
    monkeypatch.setattr(files, "MAX_DOCUMENT", 2**25)
    monkeypatch.setattr("posttrain.data.readers.MAX_LINE", 2**25)
    monkeypatch.setattr(template, "MEMORY", 2**28)
    yield


@pytest.mark.parametrize(("corpus", "title"), ALL, ids=[f"{corpus}: {title}" for corpus, title in ALL])
def test_a_case(
    corpus: str, title: str, tmp_path: Path, capsys: Any, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CORPORA[corpus][title]
    monkeypatch.setattr(template, "SECONDS", case.limit)
    monkeypatch.chdir(tmp_path)
    code, data = outcome(case, tmp_path)
    told = capsys.readouterr().err
    if not case.said:
        assert code == 0, told
        assert data is not None
        assert texts_of(case.kind, data) == case.rows
        logged = " ".join(record.getMessage() for record in caplog.records)
        assert all(part in logged for part in case.noted), logged
        return
    assert code == 2
    assert told.startswith("posttrain: error: ")
    assert len(told) < LONGEST_MESSAGE and "Traceback" not in told
    assert not any(secret in told for secret in ("hunter2", "cGFzc3dvcmQ="))
    missing = [part for part in case.said if part not in told]
    assert not missing, told
    kept = tmp_path / "cache" / "tokenised"
    assert not kept.exists() or [path.suffix for path in kept.iterdir()] in ([], [".lock"])


def test_there_are_as_many_as_promised() -> None:
    assert len(ALL) >= 190
