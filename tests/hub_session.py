"""Fixtures: the manual's models and data on a hub on loopback, and a process that runs commands against it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hub_server import Hub, running_hub


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    output: str
    offline: bool
    seconds: float


Command = Callable[..., Done]
# Of a model's folder, what says which run it belongs to and where that was; the manifest would forbid to edit what was
# downloaded.
STAYS_HERE = {"manifest.json", "run.json", "provenance.json", ".lock"}


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    from manual import write_manual_hub  # imports torch, which not every test needs

    with running_hub() as hub:
        write_manual_hub(hub, tmp_path_factory.mktemp("hub"))
        yield hub


@pytest.fixture(scope="session")
def _worker(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    home = tmp_path_factory.mktemp("home")
    hidden = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "HF_TOKEN", "POSTTRAIN_LAUNCHED", "LOCAL_RANK")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), "POSTTRAIN_CACHE": str(home / "cache")}
    environment["NO_PROXY"] = "127.0.0.1"
    worker = subprocess.Popen(
        [sys.executable, "-W", "error", str(Path(__file__).parent / "hub_worker.py")],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with worker:
        yield worker
        worker.kill()  # nothing of it is needed any more, and leaving takes trackers a while


@pytest.fixture
def command(_worker: subprocess.Popen[str], tmp_path: Path) -> Command:
    """Runs `posttrain WORDS...` in a folder of the test's own; token: that of the environment."""

    def run(*words: str, token: str | None = None, **environment: str) -> Done:
        assert _worker.stdin is not None and _worker.stdout is not None
        environment |= {} if token is None else {"HF_TOKEN": token}
        asked: dict[str, Any] = {"words": words, "environment": environment, "folder": str(tmp_path)}
        began = time.monotonic()
        _worker.stdin.write(json.dumps(asked) + "\n")
        _worker.stdin.flush()
        return Done(**json.loads(_worker.stdout.readline()), seconds=time.monotonic() - began)

    return run
