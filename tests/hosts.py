"""Two hosts on one machine: network namespaces with addresses and names of their own, and a cable between them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ADDRESSES = ["10.77.0.1", "10.77.0.2"]
LETTERS = "ab"
# As many a system has it: a host's own name is a loopback address.
NAMES = "127.0.0.1 localhost\n127.0.1.1 host-{letter}\n" + "".join(
    f"{address} node-{letter}\n" for address, letter in zip(ADDRESSES, LETTERS, strict=True)
)


def why_not() -> str | None:
    """Why there can be no hosts here; None where there can."""
    if shutil.which("ip") is None:
        return "needs ip, of the package iproute2"
    tried = subprocess.run(["unshare", "--net", "--uts", "--mount", "true"], capture_output=True, text=True)
    return None if tried.returncode == 0 else f"namespaces cannot be made: {tried.stderr.strip()}"


class Hosts:
    """Both of them.

    Args:
        folder: for what their processes say, and a file.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names = [f"posttrain-{os.getpid()}-{letter}" for letter in LETTERS]
        self._started: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Hosts:
        first, second = self._names
        for name in self._names:
            _ip("netns", "add", name)
        _ip("link", "add", "eth0", "netns", first, "type", "veth", "peer", "name", "eth0", "netns", second)
        for name, address in zip(self._names, ADDRESSES, strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", name, "link", "set", device, "up")
        return self

    def __exit__(self, *error: object) -> None:
        for host, name in enumerate(self._names):
            self.kill_all(host)
            _ip("netns", "delete", name)
        for process in self._started:
            process.wait(10)

    def start(self, host: int, words: Sequence[str], **variables: str) -> subprocess.Popen[str]:
        """A command on a host; what it says goes to the file of `said`.

        Args:
            host: 0 or 1.
            words: of the command.
            variables: of its environment, beside ours.
        """
        letter = LETTERS[host]
        names = self._folder / f"hosts-{letter}"
        names.write_text(NAMES.format(letter=letter), encoding="utf-8")
        prepare = f'hostname host-{letter} && mount --bind {names} /etc/hosts && exec "$@"'
        inside = f"nsenter --net=/run/netns/{self._names[host]} unshare --uts --mount"
        with self._log(host).open("a") as log:
            process = subprocess.Popen(
                [*inside.split(), "sh", "-c", prepare, "sh", *words],
                env=os.environ | variables,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def said(self, host: int) -> str:
        """All that commands on a host have said."""
        return self._log(host).read_text(encoding="utf-8")

    def processes(self, host: int) -> list[int]:
        """The processes of a host."""
        return [int(word) for word in _ip("netns", "pids", self._names[host]).split()]

    def kill_all(self, host: int) -> None:
        """Ends all processes of a host at once, with no word to anybody."""
        for process in self.processes(host):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def set_cable(self, state: str) -> None:
        """Plugs the cable between the hosts in or out.

        Args:
            state: "up" or "down".
        """
        _ip("-n", self._names[1], "link", "set", "eth0", state)

    def _log(self, host: int) -> Path:
        return self._folder / f"said-{LETTERS[host]}.txt"


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


# -- on a host


def launched(launch: dict[str, Any], words: Sequence[str], beat: float | None = None) -> list[str]:
    """A command that starts a program in the processes of its host, as `posttrain METHOD` does.

    Args:
        launch: options.
        words: a script or `-m module`, and its arguments.
        beat: seconds between two signs of life, for tests that do not wait half a minute.
    """
    return [sys.executable, __file__, "launch", json.dumps([launch, list(words), beat])]


def _launch(options: dict[str, Any], words: list[str], beat: float | None) -> int:
    from posttrain.config import LaunchOptions
    from posttrain.launch import launcher_command, launcher_environment, supervise

    launch = LaunchOptions(**options)
    command = launcher_command(launch, words)
    if beat is not None:
        command[1:3] = [__file__, "processes", str(beat)]
    return supervise(command, os.environ | launcher_environment(launch))


def _processes(beat: float) -> int:
    from posttrain import heartbeat, processes
    from posttrain.errors import report_mistakes

    heartbeat.SILENCE, heartbeat.GRACE, heartbeat.PATIENCE, heartbeat.BEAT = 10 * beat, 4 * beat, 5 * beat, beat
    del sys.argv[1:3]
    return report_mistakes(processes.main)


if __name__ == "__main__":
    sys.exit(_launch(*json.loads(sys.argv[2])) if sys.argv[1] == "launch" else _processes(float(sys.argv[2])))
