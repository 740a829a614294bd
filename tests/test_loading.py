"""That garbage is not looked for while libraries load, and is as soon as they are there."""

import gc
import sys
from collections.abc import Iterator

import pytest

from posttrain.loading import collector_at_rest, libraries_loaded


@pytest.fixture
def before_libraries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that has just started."""
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    gc.unfreeze()
    yield
    gc.freeze()  # as conftest.py has left it


@pytest.mark.usefixtures("before_libraries")
def test_the_collector_rests_until_libraries_are_there() -> None:
    with collector_at_rest():
        assert not gc.isenabled()
        libraries_loaded()
        assert gc.isenabled() and gc.get_freeze_count() > 1000
        gc.unfreeze()
    assert gc.isenabled() and gc.get_freeze_count() == 0  # once is enough: what a run leaves behind is collected


@pytest.mark.usefixtures("before_libraries")
def test_it_goes_on_after_a_mistake() -> None:
    with pytest.raises(ValueError, match="a mistake"), collector_at_rest():
        raise ValueError("a mistake")
    assert gc.isenabled()


def test_it_is_left_alone_where_libraries_are_there_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", sys)
    calls: list[str] = []
    monkeypatch.setattr(gc, "freeze", lambda: calls.append("freeze"))
    with collector_at_rest():
        assert gc.isenabled()
    assert not calls


@pytest.mark.usefixtures("before_libraries")
def test_it_stays_off_for_those_who_have_switched_it_off() -> None:
    gc.disable()
    try:
        with collector_at_rest():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
