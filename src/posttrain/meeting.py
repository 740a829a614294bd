"""Several machines: where they meet, which of them this one is, and by which of its networks it reaches the others."""

from __future__ import annotations

import dataclasses
import ipaddress
import logging
import socket
from collections.abc import Mapping
from typing import Any

from posttrain.config import LaunchOptions
from posttrain.errors import UserError

logger = logging.getLogger(__name__)

PORT = 29500  # torch's and accelerate's
PAGE = "cluster.md#what-to-type"
_FAR_AWAY = "192.0.2.1"  # RFC 5737: nobody's


@dataclasses.dataclass(frozen=True)
class Meeting:
    """Machines that train together, each of which is told the same but its own number.

    Args:
        address: of machine 0, a name or a number.
        port: of machine 0, where it listens.
        machine: number of this one.
        machines: how many there are.
        processes: on all machines together; each has as many.
    """

    address: str
    port: int
    machine: int
    machines: int
    processes: int

    def words(self) -> list[str]:
        """As options of `accelerate launch`, complete, so that nothing is left to its file and its defaults."""
        about = {
            "num_processes": self.processes,
            "num_machines": self.machines,
            "machine_rank": self.machine,
            "main_process_ip": self.address,
            "main_process_port": self.port,
        }
        return [word for name, value in about.items() for word in (f"--{name}", str(value))]


def meeting_of(launch: LaunchOptions, settings: Mapping[Any, Any]) -> Meeting | None:
    """The machines of a run; None where it has only this one.

    Args:
        launch: the options, which win.
        settings: of the file of accelerate.

    Raises:
        UserError: something that a machine has to know is missing, or contradicts.
    """

    def given(name: str) -> Any:
        value = getattr(launch, name)
        return settings.get(name) if value is None else value

    machines = int(given("num_machines") or 1)
    if machines == 1:
        return None
    rank, address, processes = given("machine_rank"), given("main_process_ip"), int(given("num_processes") or machines)
    if rank is None:
        raise UserError(
            f"{machines} machines take part, and this one has no number: --machine_rank 0 on the one that "
            f"--main_process_ip names, --machine_rank 1 on the next, up to {machines - 1}",
            PAGE,
        )
    if int(rank) >= machines:
        raise UserError(
            f"machine_rank is {rank}, and {machines} machines have the ranks 0 to {machines - 1}",
            PAGE,
        )
    if not address:
        raise UserError(
            f"{machines} machines meet at machine 0: --main_process_ip with its address, the same on all of them", PAGE
        )
    if processes % machines:
        raise UserError(
            f"num_processes {processes} counts those of all {machines} machines, which get the same number each; "
            f"give a multiple of {machines}",
            PAGE,
        )
    return Meeting(str(address), int(given("main_process_port") or PORT), int(rank), machines, processes)


def own_address(meeting: Meeting) -> str:
    """The address of this machine in the network by which it reaches machine 0. Nothing is sent.

    Raises:
        UserError: there is no such network, or no such name.
    """
    try:
        return _address_towards(meeting.address)
    except OSError as error:
        raise UserError(
            f"--main_process_ip {meeting.address}: no way there from this machine ({error.strerror or error}); give an "
            "address of machine 0 that all machines reach",
            PAGE,
        ) from error


def _address_towards(host: str) -> str:
    family, kind, _, _, place = socket.getaddrinfo(host, PORT, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(place)
        return str(probe.getsockname()[0])


def network_variables(meeting: Meeting, environment: Mapping[str, str]) -> dict[str, str]:
    """The interface that gloo is to take: the one by which machine 0 is reached. By itself it takes the one that this
    machine's name stands for, which on many systems is the loopback.

    Args:
        meeting: the machines.
        environment: variables that are set already, and win.
    """
    import psutil

    address = own_address(meeting)
    if ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        # What machine 0 calls itself, on many systems. The others know it by an address of a network: the default one.
        try:
            address = _address_towards(_FAR_AWAY)
        except OSError:
            return {}
    if meeting.machine == 0 and _is_elsewhere(meeting):
        logger.warning(
            "--machine_rank 0 is the machine at --main_process_ip %s, and this one has no such address.",
            meeting.address,
        )
    if "GLOO_SOCKET_IFNAME" in environment:
        return {}
    interfaces = psutil.net_if_addrs().items()
    # One that goes by several names has its addresses under each.
    names = [name for name, ways in interfaces if address in {way.address.partition("%")[0] for way in ways}]
    return {"GLOO_SOCKET_IFNAME": names[0].partition(":")[0]} if names else {}


def _is_elsewhere(meeting: Meeting) -> bool:
    """Whether the meeting point is none of this machine's addresses."""
    family, _, _, _, place = socket.getaddrinfo(meeting.address, 0, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((place[0], 0))
        except OSError:
            return True
    return False
