"""Two hosts on one machine (tests/hosts.py), one of which is lost in the middle of a run: how long until the other has
ended, and whether the same command on both then ends with the bytes of a run that nobody disturbed. As root, on Linux.

python benchmarks/two_hosts.py --methods sft grpo --losses power first cable signal
"""

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from hosts import ADDRESSES, Hosts, why_not
from tiny import run, run_policy, write_base, write_prompts, write_sft

from posttrain.checkpoints import checkpoints

LOSSES = {
    "power": "all processes of host 1 are killed",
    "first": "all processes of host 0 are killed",
    "cable": "the network between them goes down",
    "process": "the process that trains on host 1 is killed",
    "signal": "SIGTERM to the command on host 1",
}
STEPS = 40
HEAD = "| lost | exit codes | seconds | left running | newest checkpoint | same bytes | said |\n" + "|---" * 7 + "|"
POSTTRAIN = [sys.executable, "-m", "posttrain.cli"]


def words_of(method: str, material: Path, way: str) -> list[str]:
    """The command, in a folder of its own."""
    words: list[str] = []
    more = ["--save_strategy", "steps", "--save_steps", "5", "--save_total_limit", "2", "--max_steps", str(STEPS)]
    more += ["--cache_dir", str(material / "cache"), "--logging_steps", "10", "--accelerate_config", way]
    more += ["--per_device_train_batch_size", "4"]
    if method == "grpo":
        more += ["--steps_per_generation", "3"]
    start = run_policy if method == "grpo" else run
    start(method, material / "base", material / f"{method}.jsonl", material / "reward/out", *more, starter=words.extend)
    place = words.index("--output_dir")
    return words[:place] + words[place + 2 :]


def results(folder: Path) -> dict[str, str]:
    """The hashes of what a finished run leaves for whoever uses it."""
    names = ("model.safetensors", "trainer_state.json")
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest()[:12] for name in names}


def start_both(hosts: Hosts, words: list[str], folder: Path) -> list[subprocess.Popen[str]]:
    """The same command on both hosts, whose disk is one."""
    meet = ["--num_machines", "2", "--num_processes", "2", "--main_process_ip", ADDRESSES[0]]
    return [
        hosts.start(host, [*POSTTRAIN, *words, "--output_dir", str(folder), *meet, "--machine_rank", str(host)])
        for host in range(2)
    ]


def lose(hosts: Hosts, loss: str, commands: list[subprocess.Popen[str]]) -> list[int]:
    """Does what a loss is; returns the hosts that have to notice."""
    if loss == "cable":
        hosts.set_cable("down")
    elif loss == "signal":
        commands[1].send_signal(signal.SIGTERM)
    elif loss == "process":
        trained = [one for one in hosts.processes(1) if b"RANK=1" in Path(f"/proc/{one}/environ").read_bytes()]
        os.kill(max(trained), signal.SIGKILL)
    else:
        hosts.kill_all(int(loss == "power"))
    return {"power": [0], "first": [1]}.get(loss, [0, 1])


def last_message(said: str) -> str:
    """What a host has said of the end."""
    lines = [line for line in said.splitlines() if line.startswith("posttrain: ")]
    return lines[-1].removeprefix("posttrain: ") if lines else "nothing"


def drill(words: list[str], loss: str, expected: dict[str, str], folder: Path) -> bool:
    """One loss, and the same command after it; prints a row."""
    folder.mkdir()
    with Hosts(folder) as hosts:
        commands = start_both(hosts, words, folder / "out")
        while not (folder / "out/checkpoint-10").is_dir():
            assert all(command.poll() is None for command in commands), hosts.said(0) + hosts.said(1)
            time.sleep(0.05)
        began = time.monotonic()
        noticing = lose(hosts, loss, commands)
        codes, seconds = [], []
        for host in noticing:
            codes.append(commands[host].wait(120))
            seconds.append(time.monotonic() - began)
        left = sum(len(hosts.processes(host)) for host in noticing)
        message = last_message(hosts.said(noticing[0]))
        before = checkpoints(folder / "out")[-1].name
        hosts.set_cable("up")
        again = [command.wait(300) for command in start_both(hosts, words, folder / "out")]
        equal = again == [0, 0] and results(folder / "out") == expected
    cells = [LOSSES[loss], codes, f"{max(seconds):.0f}", left, before, "yes" if equal else f"no: {again}", message]
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    return equal and not left and max(seconds) < 60 and 0 not in codes


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--methods", nargs="+", choices=["sft", "grpo"], default=["sft", "grpo"])
    parser.add_argument("--losses", nargs="*", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--way", default="multi_gpu", help="the configuration of accelerate")
    arguments = parser.parse_args()
    if why_not() is not None:
        sys.exit(f"two hosts cannot be made here: {why_not()}")
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        material = Path(name)
        write_base(material / "base")
        write_sft(material / "sft.jsonl", 30)
        write_prompts(material / "grpo.jsonl", 30)
        for method in arguments.methods:
            words, alone = words_of(method, material, arguments.way), material / f"{method}-alone"
            command = [*POSTTRAIN, *words, "--output_dir", str(alone), "--num_processes", "2"]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            expected = results(alone)
            print(f"\n{method}, {arguments.way}: one host leaves {expected}\n\n{HEAD}", flush=True)
            for loss in arguments.losses:
                failed += not drill(words, loss, expected, material / f"{method}-{loss}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
