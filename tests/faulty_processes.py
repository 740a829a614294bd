"""Two processes that train together, in one of which a loss is not finite; forked, so that torch is imported once.

python faulty_processes.py STEPS RANK PORT WORDS…: the steps at which it is so, such as 2,3, and in which process.
"""

import os
import sys
import traceback

import pytest
from faults import spoil

from posttrain import training  # noqa: F401 (before the fork)
from posttrain.cli import main


def run_one(rank: int, steps: list[int], faulty: int, port: str, words: list[str]) -> int:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in numbers.items()} | {"MASTER_ADDR": "127.0.0.1"}
    os.environ["ACCELERATE_USE_CPU"] = "true"
    spoil(pytest.MonkeyPatch(), steps, rank=faulty)
    return main(words)


def run_both(steps: str, faulty: str, port: str, *words: str) -> int:
    children = []
    for rank in range(2):
        child = os.fork()
        if not child:
            code = 70
            try:
                code = run_one(rank, [int(step) for step in steps.split(",")], int(faulty), port, list(words))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


if __name__ == "__main__":
    sys.exit(run_both(*sys.argv[1:]))
