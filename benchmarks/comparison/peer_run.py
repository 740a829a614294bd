"""A run of the peer's own script, in the peer's own environment, that takes its steps when it is told to:
`python -m benchmarks.comparison.peer_run SOCKET METHOD --its --flags`, started by in_turn.py.
"""

import importlib
import sys

from transformers import trainer as trainer_module

from benchmarks.turn_taking import TurnTaking

if __name__ == "__main__":
    address, method, *flags = sys.argv[1:]
    trainer_module.DEFAULT_CALLBACKS.append(TurnTaking(address))
    script = importlib.import_module(f"trl.scripts.{method}")
    sys.argv = [method, *flags]
    script.main(*script.make_parser().parse_args_and_config())
