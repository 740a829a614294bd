"""Runs that are killed twenty times a method, at moments that a seed draws, and end as if nothing had happened: the
same bytes in the model folder, the same numbers in every file."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from kill_runs import VARIANTS, Campaign, run_of, write_material
from kills import Server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for what is left behind in /proc")
KILLS = 20


@pytest.fixture(scope="module")
def material() -> Iterator[Path]:
    """In memory where there is such a place: thousands of files are brought to the disk here."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        write_material(Path(folder))
        yield Path(folder)


@pytest.fixture(scope="module")
def server(material: Path) -> Iterator[Server]:
    server = Server(material / "base")
    yield server
    server.close()


@pytest.mark.parametrize("method", VARIANTS)
def test_a_killed_run_ends_as_an_undisturbed_one(method: str, server: Server, material: Path) -> None:
    variants = list(VARIANTS[method])
    where = []
    for number, variant in enumerate(variants):
        campaign = Campaign(server, run_of(method, variant, material), material / f"{method}-{number}", seed=number)
        campaign.kill(KILLS * (number + 1) // len(variants) - KILLS * number // len(variants))
        where += campaign.where
    assert len(where) == KILLS
    # They fell in places of several kinds, which is left to chance and the clock but for the last ones of runs.
    kinds = {place.partition(" ")[0] for place in where}
    assert "model" in kinds and len(kinds) > 2
