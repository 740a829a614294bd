"""Runs command lines one after the other in each of several processes, so that torch is imported once.

python -m posttrain.processes --config_file FILE --num_processes 2 … several_commands.py COMMANDS.json
"""

import json
import os
import sys
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState

from posttrain.cli import main


def run_all(path: Path) -> int:
    before = dict(os.environ)
    for port, words in json.loads(path.read_text(encoding="utf-8")):
        # A meeting place of its own for each: in that of the launcher the keys of the one before are still there.
        os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
        os.environ["MASTER_PORT"] = str(port)
        code = main(words)
        if code:
            return code
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        os.environ.clear()
        os.environ.update(before)
    return 0


if __name__ == "__main__":
    sys.exit(run_all(Path(sys.argv[1])))
