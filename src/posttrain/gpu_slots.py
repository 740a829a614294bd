"""One GPU a run where several run at a time: each takes the first that no other holds, and keeps it to its end.

POSTTRAIN_GPU_SLOTS says which there are: `auto` (all that this process may see) or ids with commas between (as in
CUDA_VISIBLE_DEVICES; one that stands twice is shared by two runs). Without it nothing happens. What is held is a lock
on a file, which the system takes back when the holder ends, however it ends.
"""

import os
import shutil
import socket
import subprocess
import time
from collections import Counter
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from posttrain.cache import cache_root
from posttrain.errors import UserError
from posttrain.terminal import say

SLOTS = "POSTTRAIN_GPU_SLOTS"
VISIBLE = "CUDA_VISIBLE_DEVICES"
_SECONDS_BETWEEN_LOOKS = 0.2
_held: list[Any] = []  # for as long as this process lives


def devices(environment: MutableMapping[str, str] = os.environ) -> list[str]:
    """The GPUs that this process may see, as CUDA_VISIBLE_DEVICES names them. CUDA is not asked: it reads that once."""
    if VISIBLE in environment:
        return _ids(environment[VISIBLE])
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.split() if done.returncode == 0 else []


def take_slot(environment: MutableMapping[str, str] = os.environ, folder: Path | None = None) -> str | None:
    """Wait for a free GPU, and make it the only one that this process sees. To be called before CUDA is used.

    Args:
        environment: variables of this process.
        folder: where the locks are; None: in the cache, one folder a machine.

    Returns:
        The id of the GPU; None where no slots are asked for, or this machine has no GPU.

    Raises:
        UserError: the locks cannot be written.
    """
    wanted = environment.get(SLOTS, "").strip()
    if not wanted or _held:
        return None
    ids = devices(environment) if wanted == "auto" else _ids(wanted)
    if not ids:
        return None
    place = folder or cache_root(None) / "gpu_slots" / socket.gethostname()
    try:
        place.mkdir(parents=True, exist_ok=True)
        chosen = _wait_for_one(_slots(ids), place)
    except OSError as error:
        raise UserError(
            f"{SLOTS}: {place} cannot be written ({error.strerror}); POSTTRAIN_CACHE names another"
        ) from error
    environment[VISIBLE] = chosen
    return chosen


def _ids(text: str) -> list[str]:
    return [word for word in (part.strip() for part in text.split(",")) if word and word != "-1"]


def _slots(ids: list[str]) -> list[tuple[str, str]]:
    """Each GPU with the name of a slot of its own, however often it stands there."""
    seen: Counter[str] = Counter()
    slots = []
    for device in ids:
        seen[device] += 1
        slots.append((device, f"{device.replace('/', '_')}-{seen[device]}"))
    return slots


def _wait_for_one(slots: list[tuple[str, str]], folder: Path) -> str:
    from filelock import FileLock, Timeout

    told = False
    while True:
        for device, name in slots:
            lock = FileLock(folder / f"{name}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            _held.append(lock)
            say(f"GPU {device}: taken for this run ({SLOTS})")
            return device
        if not told:
            told = True
            say(f"waiting for a GPU: {', '.join(dict.fromkeys(device for device, _ in slots))} are taken ({SLOTS})")
        time.sleep(_SECONDS_BETWEEN_LOOKS)
