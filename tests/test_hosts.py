"""Two hosts: they train, save and go on as one machine would; and when one is gone, the other says so and ends."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hosts import ADDRESSES, Hosts, launched, why_not
from tiny import REWARD, run, run_policy, write_base, write_prompts, write_sft

from posttrain import heartbeat, meeting
from posttrain.config import parse_command_line
from posttrain.errors import UserError
from posttrain.heartbeat import Heartbeat
from posttrain.launch import _settle_processes, launcher_command
from posttrain.meeting import Meeting

HERE = Path(__file__).resolve().parent
needs_hosts = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
MULTI_NODE = {"accelerate_config": "multi_node", "num_processes": 2, "main_process_ip": ADDRESSES[0]}
# A step in which the second process is asked to end.
ASKED = """
import os, signal
from pathlib import Path
from reward import share_of_one

calls = []

def share(completion_ids, **columns):
    calls.append(True)
    if os.environ["RANK"] == "1" and len(calls) == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    return share_of_one(completion_ids)
"""
# A run without torch, in the middle of a step that does not end.
TRAINS = """
import time
from posttrain import stop
with stop.handled():
    stop.enter(stop.Phase.STEPS)
    print("a step", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all runs, one after the other in the same processes of both hosts: on a disk that they share
    (sft, grpo), on one of each host's own (a, b), and from the checkpoint in the middle of each."""
    folder = tmp_path_factory.mktemp("hosts")
    base, rows, prompts = (
        write_base(folder / "base"),
        write_sft(folder / "rows.jsonl"),
        write_prompts(folder / "prompts.jsonl"),
    )
    more = ["--max_steps", "4", "--save_strategy", "steps", "--save_steps", "2", "--per_device_train_batch_size", "2"]
    resumed = ["--resume_from_checkpoint"]
    path = os.pathsep.join([str(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    with Hosts(folder) as hosts:
        running = []
        for host, own in enumerate("ab"):
            commands: list[list[str]] = []
            for name, parent in (("sft", folder / "sft"), (own, folder / own / "sft")):
                run("sft", base, rows, parent / "whole", *more, starter=commands.append)
                point = [*resumed, str(parent / "whole/checkpoint-2")]
                run("sft", base, rows, parent / f"resumed-{name}", *more, *point, starter=commands.append)
            grpo = folder / "grpo"
            sizes = [*more, "--per_device_train_batch_size", "4"]
            run_policy("grpo", base, prompts, grpo / "whole", *sizes, starter=commands.append)
            point = [*resumed, str(grpo / "whole/checkpoint-2")]
            run_policy("grpo", base, prompts, grpo / "resumed", *sizes, *point, starter=commands.append)
            (folder / "asked.py").write_text(ASKED)
            (folder / "reward.py").write_text(REWARD)
            reward = ["--reward_funcs", f"{folder / 'asked.py'}:share"]
            run_policy("grpo", base, prompts, folder / "asked", *sizes, *reward, starter=commands.append)
            listed = folder / f"commands-{own}.json"
            listed.write_text(json.dumps([[29600 + i, words] for i, words in enumerate(commands)]))
            words = launched(MULTI_NODE | {"machine_rank": host}, [str(HERE / "several_commands.py"), str(listed)])
            running.append(hosts.start(host, words, PYTHONPATH=path, OMP_NUM_THREADS="1"))
        exit_codes = [process.wait(240) for process in running]
        assert exit_codes == [143, 143], hosts.said(0) + hosts.said(1)
        assert not hosts.processes(0) + hosts.processes(1)
    return folder


def weights(folder: Path) -> bytes:
    """Of a model or a checkpoint."""
    return (folder / "model.safetensors").read_bytes()


@needs_hosts
def test_hosts_go_on_from_a_checkpoint_to_the_same_bytes(trained: Path) -> None:
    assert weights(trained / "sft/whole") == weights(trained / "sft/resumed-sft")
    assert weights(trained / "grpo/whole") == weights(trained / "grpo/resumed")
    assert weights(trained / "sft/whole") != weights(trained / "sft/whole/checkpoint-2")


@needs_hosts
def test_hosts_without_a_shared_disk_keep_a_whole_checkpoint_each(trained: Path) -> None:
    assert weights(trained / "a/sft/whole") == weights(trained / "sft/whole") == weights(trained / "a/sft/resumed-a")
    for step in (2, 4):
        first, second = (trained / host / f"sft/whole/checkpoint-{step}" for host in "ab")
        assert weights(first) == weights(second)
        assert (second / "posttrain_state_1.pt").is_file() and not (first / "posttrain_state_1.pt").exists()
    assert weights(trained / "b/sft/resumed-b/checkpoint-4") == weights(trained / "sft/whole")
    assert not (trained / "b/sft/whole/model.safetensors").exists()  # the finished model is the first host's


@needs_hosts
def test_a_signal_on_one_host_ends_both_after_the_same_step(trained: Path) -> None:
    (folder,) = (trained / "asked").glob("checkpoint-*")
    assert folder.name == "checkpoint-2"
    assert {f"rng_state_{rank}.pth" for rank in (0, 1)} <= {path.name for path in folder.iterdir()}
    for host in "ab":
        said = (trained / f"said-{host}.txt").read_text()
        assert said.count("posttrain: stopped by SIGTERM after step 2 of 4") == 1
        assert "Traceback" not in said


@needs_hosts
def test_hosts_end_by_themselves_when_the_network_between_them_is_gone(tmp_path: Path) -> None:
    """No connection is closed then, and both have a process in a step that does not end."""
    (tmp_path / "trains.py").write_text(TRAINS)
    with Hosts(tmp_path) as hosts:
        words = [str(tmp_path / "trains.py")]
        running = [
            hosts.start(host, launched(MULTI_NODE | {"machine_rank": host}, words, beat=0.3)) for host in range(2)
        ]
        wait_for(lambda: all("a step" in hosts.said(host) for host in range(2)), 60)
        hosts.set_cable("down")
        assert [process.wait(30) for process in running] == [1, 1]
        assert "error: machine 1 (host-b, 10.77.0.2) is gone: no sign of life" in hosts.said(0)
        assert re.search(r"machine 0 \((host-a, )?10\.77\.0\.1\) is gone: it cannot be reached", hosts.said(1))
        for host in range(2):
            assert "the same command on all of them goes on from the last checkpoint" in hosts.said(host)
            assert "Traceback" not in hosts.said(host)
            assert not hosts.processes(host)


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# -- what the signs of life mean, in this process


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(heartbeat, "BEAT", 0.02)
    monkeypatch.setattr(heartbeat, "SILENCE", 0.5)
    monkeypatch.setattr(heartbeat, "GRACE", 0.2)
    yield


class Machines:
    """Machines that meet in this process.

    Args:
        number: how many.
        processes: what each was told of their number.
    """

    def __init__(self, number: int, processes: Sequence[int] = (16, 16, 16)) -> None:
        from torch.distributed import TCPStore

        self.number, self.causes, self.was_asked = number, dict[int, list[str]](), False
        self.server = TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(5), wait_for_workers=False)
        self.beats = [self.join(rank, processes[rank]) for rank in range(number)]
        wait_for(lambda: all(len(beat._about) == number - 1 for beat in self.beats), 10)

    def join(self, rank: int, processes: int = 16) -> Heartbeat:
        """A machine that starts."""
        causes = self.causes.setdefault(rank, [])

        def give_up(cause: str, code: int) -> None:
            causes.append(cause)
            threading.Event().wait()

        place = Meeting("127.0.0.1", self.server.port, rank, self.number, processes)
        beat = Heartbeat(place, give_up, lambda: self.was_asked)
        beat.start()
        return beat

    def end(self) -> None:
        """Of all."""
        for beat in self.beats:
            beat._is_judging = beat._is_beating = False


@pytest.fixture
def three(quick: None) -> Iterator[Machines]:
    machines = Machines(3)
    yield machines
    machines.end()


def test_the_others_name_the_machine_that_is_gone(three: Machines) -> None:
    time.sleep(0.7)
    assert not any(three.causes.values())  # nobody is gone
    three.beats[1]._is_beating = three.beats[1]._is_judging = False
    wait_for(lambda: bool(three.causes[0] and three.causes[2]), 10)
    name = f"machine 1 ({socket.gethostname()}, 127.0.0.1) is gone: no sign of life for"
    assert three.causes[0][0].startswith(name) and three.causes[2][0].startswith(name)
    assert not three.causes[1]


@pytest.mark.parametrize(
    ("code", "was_asked", "ends"), [(0, False, False), (2, False, True), (143, True, False), (143, False, True)]
)
def test_a_machine_that_has_ended(three: Machines, code: int, was_asked: bool, ends: bool) -> None:
    """In good order, where all machines are about to, the others have their time; else they end, too."""
    three.was_asked = was_asked
    three.beats[1].tell_end(code)
    time.sleep(0.8 if not ends else 0)
    if ends:
        wait_for(lambda: bool(three.causes[0] and three.causes[2]), 10)
        assert f"has ended with exit code {code}" in three.causes[0][0]
    assert bool(three.causes[0]) == bool(three.causes[2]) == ends


def test_machine_0_takes_the_meeting_point_with_it(three: Machines) -> None:
    three.beats[0]._is_beating = three.beats[0]._is_judging = False
    del three.server
    wait_for(lambda: bool(three.causes[1] and three.causes[2]), 10)
    for rank in (1, 2):
        assert three.causes[rank] == [
            f"machine 0 ({socket.gethostname()}, 127.0.0.1) is gone: its command has ended, or was killed"
        ]


def test_why_a_connection_broke(three: Machines) -> None:
    assert three.beats[0].cause_of_failure() is None  # all are there: the cause is a process, of which it is told
    three.beats[2].tell_end(1)
    wait_for(lambda: 2 in three.beats[0]._ends, 10)
    cause = three.beats[0].cause_of_failure()
    assert cause is not None and "machine 2" in cause and "exit code 1" in cause


def test_machines_that_were_told_different_things(quick: None) -> None:
    machines = Machines(2)
    with pytest.raises(UserError, match=r"--machine_rank 1 is that of .*, which is at work at 127.0.0.1"):
        machines.join(1)
    machines.end()
    machines = Machines(2, processes=[16, 8])
    wait_for(lambda: bool(machines.causes[0]), 10)
    assert "was started with --num_processes 8, here 16" in machines.causes[0][0]
    machines.end()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--main_process_ip 127.0.0.1", "this one has no number: --machine_rank 0"),
        ("--machine_rank 1", "--main_process_ip with its address"),
        ("--machine_rank 2 --main_process_ip 127.0.0.1", "machine_rank is 2, and 2 machines"),
        ("--machine_rank 1 --main_process_ip 127.0.0.1 --num_processes 3", "give a multiple of 2"),
        ("--machine_rank 1 --main_process_ip 127.0.0.1 --num_processes 16", "--num_processes 8 for 2 machines"),
    ],
)
def test_what_a_machine_has_to_know(words: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 4)
    given = ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", "o", *words.split()]
    config, launch = parse_command_line("sft", [*given, "--accelerate_config", "multi_node"])
    with pytest.raises(UserError, match=message):
        _settle_processes(launch, config)


@pytest.mark.parametrize("name", ["multi_node", "fsdp2", "zero3"])
def test_every_configuration_goes_over_machines(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many processes as GPUs, and all that accelerate would take from elsewhere."""
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 4)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    given = ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", "o", "--accelerate_config", name]
    where = ["--num_machines", "2", "--machine_rank", "1", "--main_process_ip", "127.0.0.1"]
    config, launch = parse_command_line("sft", [*given, *where])
    assert _settle_processes(launch, config)
    words = " ".join(map(str, launcher_command(launch, ["x.py"])))
    assert "--num_processes 8 --num_machines 2 --machine_rank 1 --main_process_ip 127.0.0.1" in words
    assert "--main_process_port 29500 x.py" in words


@pytest.mark.parametrize(("towards", "interface"), [("10.1.0.5", "ib0"), ("127.0.1.1", "eth0")])
def test_gloo_takes_the_network_of_the_others(towards: str, interface: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one by which machine 0 is reached, and never the loopback, which is how a machine may know itself."""
    from types import SimpleNamespace

    has = {"lo": ["127.0.0.1", "127.0.1.1"], "eth0": ["192.168.1.5", "fe80::1%eth0"], "ib0": ["10.1.0.5"]}
    known = {name: [SimpleNamespace(address=one) for one in addresses] for name, addresses in has.items()}
    ways = {"node0": towards, meeting._FAR_AWAY: "192.168.1.5"}
    monkeypatch.setattr("psutil.net_if_addrs", lambda: known)
    monkeypatch.setattr(meeting, "_address_towards", ways.__getitem__)
    machine = Meeting("node0", 29500, 1, 2, 16)
    assert meeting.network_variables(machine, {}) == {"GLOO_SOCKET_IFNAME": interface}
    assert meeting.network_variables(machine, {"GLOO_SOCKET_IFNAME": "eth1"}) == {}


def read_by(which: dict[str, Any]) -> dict[str, Any]:
    return {"method": "SFTConfig", "flags": {"seed": 1}, "packages": {}, "rows": ["1"], "weights": "2"} | which


def test_machines_that_read_different_rows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from posttrain import one_run

    others = [(1, read_by({"rows": ["3"], "flags": {"seed": 2}}))]
    monkeypatch.setattr("accelerate.utils.gather_object", lambda own: [*others, *own])
    with pytest.raises(UserError, match="machine 1 does not train the same as machine 0: the rows; seed 1 → 2"):
        one_run.check_same(read_by({}))
    others[0] = (1, read_by({}))
    one_run.check_same(read_by({}))


@pytest.mark.parametrize(
    ("seen", "words", "message"),
    [
        ([{0, 1}, {0, 1}], [], None),
        ([{0, 1}, {0, 1}], ["--save_on_each_node"], "leave it out"),
        ([{0}, {1}], [], None),
        ([{0}, {1}], ["--fsdp", "full_shard"], "on a disk that they share"),
        ([{0, 1}, {0, 1}, {2}], [], "machine 2 does not share"),
    ],
)
def test_disks_that_go_together(
    seen: list[set[int]], words: list[str], message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    from posttrain import one_run

    given = ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", "o"]
    config, _ = parse_command_line("sft", [*given, *[word for word in words if word == "--save_on_each_node"]])
    arguments: Any = SimpleNamespace(
        fsdp="--fsdp" in words, deepspeed=None, process_index=0, save_on_each_node="--save_on_each_node" in words
    )
    monkeypatch.setenv("GROUP_WORLD_SIZE", str(len(seen)))
    monkeypatch.setattr(one_run, "_who_sees_whom", lambda run, arguments: seen)
    if message is None:
        one_run.settle_disks(config, arguments)
        assert arguments.save_on_each_node == (len(seen[0]) == 1)
    else:
        with pytest.raises(UserError, match=message):
            one_run.settle_disks(config, arguments)
