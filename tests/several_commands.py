"""Command lines one after the other, each in as many processes as its configuration of accelerate says, and all of them
forked from one process, so that torch is imported once. What a launcher tells its processes it is asked for beforehand.

python several_commands.py WAYS.json: from `launch_ways`
python several_commands.py COMMANDS.json: ports and words, in a process that a launcher has started
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from forks import free_ports, load_all

from posttrain.config import LaunchOptions
from posttrain.launch import launcher_command, launcher_environment

Words = Sequence[str]
# In place of a run: the variables that a launcher gives to each of its processes.
TELL = """
import json, os, sys
with open(f"{sys.argv[1]}-{os.environ['RANK']}.json", "w", encoding="utf-8") as file:
    json.dump(dict(os.environ), file)
"""


def launch(commands: Sequence[Words], folder: Path, way: str | None = None, processes: int = 2) -> None:
    """Runs commands of posttrain.

    Args:
        commands: words behind `posttrain`.
        folder: for what is written on the way.
        way: name of accelerate's configuration; None: in one process.
        processes: their number, with a configuration.
    """
    launch_ways({way: commands}, folder, processes)


def launch_ways(
    commands: Mapping[Any, Sequence[Words]], folder: Path, processes: int = 2, any_precision: bool = False
) -> None:
    """As `launch`, with the commands of several configurations.

    Args:
        commands: by the name of the configuration, or None.
        folder: for what is written on the way.
        processes: their number, with a configuration.
        any_precision: whether `--bf16` is taken on processors that imitate it, too.
    """
    (folder / "tell.py").write_text(TELL, encoding="utf-8")
    ways = [_way(name, words, folder, processes) for name, words in commands.items()]
    file = folder / "ways.json"
    file.write_text(json.dumps({"ways": ways, "any_precision": any_precision}), encoding="utf-8")
    done = subprocess.run([sys.executable, __file__, str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]


def _way(name: str | None, commands: Sequence[Words], folder: Path, processes: int) -> dict[str, Any]:
    about: dict[str, Any] = {"commands": list(zip(free_ports(len(commands)), commands, strict=True)), "told": []}
    if name is not None:
        options = LaunchOptions(num_processes=processes, accelerate_config=name)
        told = folder / f"told-{name}"
        about["launcher"] = launcher_command(options, [str(folder / "tell.py"), str(told)])
        about["environment"] = launcher_environment(options)
        about["told"] = [f"{told}-{rank}.json" for rank in range(processes)]
    return about


# -- the program


def run_all(path: Path) -> int:
    """Runs all that a file holds, until one fails; returns its exit code."""
    content = json.loads(path.read_text(encoding="utf-8"))
    ways = content["ways"] if isinstance(content, dict) else [{"commands": content, "told": []}]
    words = ways[0]["commands"][0][1]
    is_launched = "RANK" in os.environ
    load_all(Path(words[words.index("--model_name_or_path") + 1]), *(() if is_launched else ("posttrain.processes",)))
    if isinstance(content, dict) and content["any_precision"]:
        from posttrain import training

        training._what_a_cpu_lacks = lambda config: {}
    for way in ways:
        code = _run_way(way)
        if code:
            return code
    return 0


def _run_way(way: dict[str, Any]) -> int:
    if way["told"]:
        code = _together([partial(_launch, way["launcher"], way["environment"])])
        if code:
            return code
    variables = [json.loads(Path(file).read_text(encoding="utf-8")) for file in way["told"]] or [dict(os.environ)]
    for port, words in way["commands"]:
        code = _together([partial(_run, own, port, words) for own in variables])
        if code:
            return code
    return 0


def _together(functions: Sequence[Callable[[], int]]) -> int:
    """Runs each in a fork. Where one fails, the others, which would wait for it, are killed; returns its exit code."""
    children, failed = set[int](), 0
    for function in functions:
        child = os.fork()
        if child == 0:
            os._exit(_code_of(function))
        children.add(child)
    while children:
        child, status = os.wait()
        children.remove(child)
        code = os.waitstatus_to_exitcode(status)
        if code and not failed:
            failed = code
            for other in children:
                os.kill(other, signal.SIGKILL)
    return failed


def _code_of(function: Callable[[], int]) -> int:
    try:
        return function()
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _launch(words: list[str], environment: dict[str, str]) -> int:
    from posttrain import processes

    os.environ.update(environment)
    sys.argv = words[words.index("posttrain.processes") :]
    return processes.main()


def _run(variables: dict[str, str], port: int, words: list[str]) -> int:
    from posttrain.cli import main

    os.environ.clear()
    os.environ.update(variables)
    # A meeting place of its own for each: in that of the launcher the keys of the one before are still there.
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    os.environ["MASTER_PORT"] = str(port)
    return main(words)


if __name__ == "__main__":
    sys.exit(run_all(Path(sys.argv[1])))
