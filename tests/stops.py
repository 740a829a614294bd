"""Training runs that get signals at chosen moments, in processes forked off as those of kills.py are."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import kills


def stop(event: str, step: int, *signals: str, rank: int = 0) -> kills.Kill:
    """What happens to a run.

    Args:
        event: of transformers' callbacks, or "tokenizer": right before that is loaded.
        step: how many steps are done then.
        signals: names, one after the other; with a + to all processes of the run.
        rank: of the process where it happens.
    """
    return kills.Kill(kind=" ".join([event, *signals]), number=step, rank=rank)


class Server(kills.Server):
    """A process that forks runs.

    Args:
        model: a folder.
    """

    def __init__(self, model: Path) -> None:
        super().__init__(model, __file__)


def _signal_at(what: kills.Kill | None, rank: int, told: int) -> None:
    """In the process of a run: sends itself signals when the moment has come."""
    if what is None:
        return
    event, *names = what.kind.split()
    if event == "tokenizer":
        training: Any = importlib.import_module("posttrain.training")
        load = training.load_tokenizer
        training.load_tokenizer = lambda config: (_send(names), load(config))[1]
        return
    from posttrain.stop_training import Stopping

    before, sent = getattr(Stopping, event), []

    def at_event(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        before(self, args, state, control, **more)
        if state.global_step == what.number and not sent:
            sent.append(True)
            _send(names)

    setattr(Stopping, event, at_event)


def _send(names: list[str]) -> None:
    from posttrain import stop

    for name in names:
        if name.endswith("+"):
            os.killpg(0, signal.Signals[name.removesuffix("+")])
        else:
            os.kill(os.getpid(), signal.Signals[name])
        deadline = time.monotonic() + 10
        while stop.asked() is None and time.monotonic() < deadline:
            time.sleep(0.001)
    if (names[-1] == "SIGINT" and len(names) > 1) or stop.asked() is None:
        time.sleep(10)  # it is to end here


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: None)  # it stands for the launcher, which the first process tells
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup, where the tests run under it, has ignored
    kills._listen = _signal_at
    kills._serve(sys.argv[1])
