"""Command lines one after the other in one process, or in each of several, so that torch is imported once: each of them
runs in a fork, which begins as a fresh process would.

python several_commands.py COMMANDS.json
python -m posttrain.processes --config_file FILE --num_processes 2 … several_commands.py COMMANDS.json
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import socket
import subprocess
import sys
import traceback
import warnings
from pathlib import Path

from posttrain.config import LaunchOptions
from posttrain.launch import launcher_command, launcher_environment

METHODS = ("sft", "reward", "dpo", "grpo", "rloo")
# What a run imports on its way, so that no fork does so anew.
_IMPORTED = (
    *("posttrain.cli", "posttrain.training", *(f"posttrain.methods.{name}" for name in METHODS)),
    "transformers.models.qwen2.modeling_qwen2",
)


def launch(commands: list[list[str]], folder: Path, way: str | None = None, processes: int = 2) -> None:
    """Runs commands of posttrain.

    Args:
        commands: words behind `posttrain`.
        folder: for what is written on the way.
        way: name of accelerate's configuration; None: in one process.
        processes: their number, with a configuration.
    """
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in commands]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    file = folder / "commands.json"
    file.write_text(json.dumps(list(zip(ports, commands, strict=True))), encoding="utf-8")
    words, environment = [sys.executable, __file__, str(file)], dict(os.environ)
    if way is not None:
        options = LaunchOptions(num_processes=processes, accelerate_config=way)
        words = launcher_command(options, words[1:])
        environment |= launcher_environment(options)
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]


def run_all(path: Path) -> int:
    """Runs all of a file of ports and commands, until one fails; returns its exit code."""
    _import_all()
    for port, words in json.loads(path.read_text(encoding="utf-8")):
        child = os.fork()
        if child == 0:
            os._exit(_run(port, words))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code:
            return code
    return 0


def _run(port: int, words: list[str]) -> int:
    from posttrain.cli import main

    # A meeting place of its own for each: in that of the launcher the keys of the one before are still there.
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    os.environ["MASTER_PORT"] = str(port)
    try:
        return main(words)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _import_all() -> None:
    for name in _IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a fork shares what it never looks through again
    # Python is told of threads of libraries, which hold no lock now.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)


if __name__ == "__main__":
    sys.exit(run_all(Path(sys.argv[1])))
