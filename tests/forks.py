"""What a program of the tests loads once, before it forks a process for each run: a fork begins as a fresh process
would, and neither imports anything nor meets a model for the first time."""

from __future__ import annotations

import copy
import functools
import gc
import importlib
import json
import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

METHODS = ("sft", "reward", "dpo", "grpo", "rloo")
# With what a run imports on its way.
MODULES = (
    *("posttrain.cli", "posttrain.training", *(f"posttrain.methods.{name}" for name in METHODS)),
    *("torch.profiler", "torch.distributed.fsdp", "torch.utils.serialization"),
    *("torch.distributed.algorithms.ddp_comm_hooks", "torch.distributed.checkpoint.state_dict"),
    *("peft.utils.transformers_weight_conversion", "numpy.ctypeslib", "encodings.unicode_escape"),
)


def load_all(model: Path | None = None, *further: str) -> None:
    """Imports what training needs, and does what is only slow the first time.

    Args:
        model: a folder; a model is read from there, and forgotten.
        *further: modules.
    """
    gc.disable()  # see posttrain.loading
    for name in (*MODULES, *further):
        importlib.import_module(name)
    import transformers

    from posttrain import packages, provenance, runs

    transformers.utils.logging.disable_progress_bar()
    if model is not None:
        transformers.AutoModelForCausalLM.from_pretrained(model)
        transformers.AutoTokenizer.from_pretrained(model)
    packages.installed()
    runs.code_digest()
    know_code()
    provenance._code()
    gc.enable()
    gc.collect()
    gc.freeze()  # a fork shares what it never looks through again
    # Python is told of threads of libraries, which hold no lock now.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)


def know_code() -> None:
    """Git is asked about the checkout of the code once a process, not by each run: it stays as it is."""
    from posttrain import provenance

    if hasattr(provenance._code, "once"):
        return
    once = functools.cache(lambda path, ask=provenance._code: ask())

    def code() -> dict[str, Any]:
        return copy.deepcopy(once(os.environ.get("PATH")))  # which git may be missing from

    code.once = once  # type: ignore[attr-defined]
    provenance._code = code


def free_ports(number: int) -> list[int]:
    """As many different ones, on which nobody listens."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


class Program:
    """A program that answers lines of JSON on its standard input with lines on its standard output, for as long as a
    test wants to ask.

    Args:
        *words: for Python.
        **variables: of its environment, beside ours.
    """

    def __init__(self, *words: str, **variables: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *words],
            env=os.environ | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: Any) -> Any:
        """Its answer, which is waited for."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
