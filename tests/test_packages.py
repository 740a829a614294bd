"""The installed packages as importlib.metadata knows them."""

import importlib.metadata
from pathlib import Path

import pytest

from posttrain.packages import installed, version_of


def test_versions_are_those_that_the_library_reads() -> None:
    for name in ("torch", "huggingface_hub", "PyYAML", "huggingface-hub"):
        assert version_of(name) == importlib.metadata.version(name)
    assert version_of("no-such-package") is None
    assert installed() == {name: importlib.metadata.version(name) for name in installed()}
    assert len(installed()) > 50


def test_of_two_the_first_on_the_path_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, version in (("first", "2"), ("second", "1")):
        info = tmp_path / folder / f"some_thing-{version}.dist-info"
        info.mkdir(parents=True)
        text = f"Metadata-Version: 2.1\nName: Some.Thing\nVersion: {version}\nDescription: a: b\n\nName: of the text\n"
        (info / "METADATA").write_text(text)
    monkeypatch.setattr("sys.path", [str(tmp_path / "first"), str(tmp_path / "second")])
    installed.cache_clear()
    version_of.cache_clear()
    try:
        assert installed() == {"Some.Thing": "2"}
        assert version_of("some-thing") == importlib.metadata.version("some-thing") == "2"
    finally:
        installed.cache_clear()
        version_of.cache_clear()
