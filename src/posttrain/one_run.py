"""Several machines, one run: what each has read has to be the same, and it matters whether they see one disk."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import UserError
from posttrain.runs import differences
from posttrain.sharding import is_sharded

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from posttrain.config import CommonConfig

logger = logging.getLogger(__name__)

PAGE = "cluster.md#what-every-machine-needs"
_MARK = ".seen-by-"
_LOOK = 3.0  # seconds in which a file of another machine may appear


def num_machines() -> int:
    """How many machines a launcher has started the processes of this run on."""
    return int(os.environ.get("GROUP_WORLD_SIZE", "1"))


def machine() -> int:
    """The number of this one."""
    return int(os.environ.get("GROUP_RANK", "0"))


def settle_disks(config: CommonConfig, arguments: TrainingArguments) -> None:
    """Finds out whether the machines of a run share its folder. If not, each keeps checkpoints of its own; called by
    all processes.

    Args:
        config: of the run.
        arguments: of the run, whose `save_on_each_node` is set to what there is.

    Raises:
        UserError: the disks do not go together with what the flags ask for.
    """
    if num_machines() == 1:
        return
    run = Path(config.work_dir or config.output_dir or ".").expanduser()
    seen = _who_sees_whom(run, arguments)
    name = f"--{'work_dir' if config.work_dir else 'output_dir'} {run}"
    lonely = [number for number, others in enumerate(seen) if len(others) == 1]
    if len(lonely) not in (0, len(seen)):
        raise UserError(
            f"{name} is on a disk that machine {', '.join(map(str, lonely))} does not share with the others: put it on "
            "one that all share, or on one of each machine's own",
            PAGE,
        )
    if not lonely and config.save_on_each_node:
        raise UserError(
            f"--save_on_each_node: {name} is on a disk that the machines share, where all would write the same files; "
            "leave it out",
            PAGE,
        )
    if lonely and (is_sharded(arguments) or arguments.deepspeed):
        raise UserError(
            f"{name} is on a disk of each machine's own, and FSDP and DeepSpeed spread a checkpoint over all machines: "
            "put it on a disk that they share, or train with --accelerate_config multi_node",
            PAGE,
        )
    arguments.save_on_each_node = bool(lonely)
    if lonely and arguments.process_index == 0:
        logger.info("%s is on a disk of each machine's own: each keeps its checkpoints, the first the model.", name)


def _who_sees_whom(run: Path, arguments: TrainingArguments) -> list[set[int]]:
    """For each machine, those whose file in the run's folder it sees. Each writes before it looks, for then a network
    disk asks its server anew."""
    from accelerate.utils import broadcast_object_list, gather_object

    token = broadcast_object_list([secrets.token_hex(8)])[0]
    is_first_here = arguments.local_process_index == 0
    mine = run / f"{_MARK}{machine()}-{token}"
    try:
        if is_first_here:
            run.mkdir(parents=True, exist_ok=True)
            mine.touch()
        arguments.distributed_state.wait_for_everyone()
        seen = _look(run, token) if is_first_here else set()
        told = gather_object([(machine(), seen)] if is_first_here else [])
        arguments.distributed_state.wait_for_everyone()
    finally:
        if is_first_here:
            with contextlib.suppress(OSError):
                mine.unlink(missing_ok=True)
    found = dict(told)
    # A disk is shared if one of two sees the other.
    return [{j for j in found if j in found[i] or i in found[j]} for i in sorted(found)]


def _look(run: Path, token: str) -> set[int]:
    deadline = time.monotonic() + _LOOK
    while True:
        names = [name for name in os.listdir(run) if name.startswith(_MARK) and name.endswith(f"-{token}")]
        seen = {int(name.removeprefix(_MARK).partition("-")[0]) for name in names}
        if len(seen) == num_machines() or time.monotonic() > deadline:
            return seen
        time.sleep(0.1)


def check_same(about: dict[str, Any] | None) -> None:
    """Compares what the machines have read; called by all processes.

    Args:
        about: what the run depends on, as the first process of a machine has found it; None in the others.

    Raises:
        UserError: it is not the same on all of them.
    """
    from accelerate.utils import gather_object

    told = gather_object([] if about is None else [(machine(), about)])
    (_, first), *others = sorted(told, key=lambda one: one[0])
    for number, other in others:
        different = differences(first, other)
        if different:
            raise UserError(
                f"machine {number} does not train the same as machine 0: {'; '.join(different)}. Give all of them the "
                "same command, and the same files",
                PAGE,
            )
