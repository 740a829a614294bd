"""Locks that builds of torch's extensions have left behind.

DeepSpeed has torch build its operators at a first start. A process that builds holds a file named `lock`; one that is
killed leaves it there, and the next start waits for it without an end and without a word.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path

logger = logging.getLogger(__name__)


def tell_of_left_locks() -> None:
    """Names the locks that no process of this machine has open; another one with the same home may."""
    for lock in left_locks():
        logger.warning(
            "%s is there, and no process of this machine holds it: a start that was killed while DeepSpeed's operators "
            "were built has left it, and this one will wait for it for ever. Unless another machine builds them right "
            "now, remove it: rm '%s'",
            lock,
            lock,
        )


def left_locks() -> list[Path]:
    """Those of builds that are over, where the system can tell (Linux)."""
    if sys.platform != "linux":
        return []
    # As torch.utils.cpp_extension has it: a folder an extension, and of these one for Python and CUDA unless they are
    # to be elsewhere.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cache / "torch_extensions").resolve()
    locks = sorted([*root.glob("*/lock"), *root.glob("*/*/lock")])
    held = _open_files() if locks else set()
    return [lock for lock in locks if str(lock) not in held]


def _open_files() -> set[str]:
    """What the processes of this machine have open, as far as this one may know."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            for file in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    found.add(os.readlink(file))
    return found
