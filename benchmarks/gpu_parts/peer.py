"""Runs the peer's own script in the peer's own environment with the clock in it:
`peer.py METHOD RECORD SKIP STEPS SECONDS --its --flags`."""

import contextlib
import importlib
import sys
from pathlib import Path

from transformers import trainer as trainer_module

if __name__ == "__main__":
    method, record, skip, steps, seconds, *flags = sys.argv[1:]
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from gpu_parts.clock import Clock, Measured

    clock = Clock(int(skip), int(steps), float(seconds), file=Path(record))
    trainer_module.DEFAULT_CALLBACKS.append(clock)
    script = importlib.import_module(f"trl.scripts.{method}")
    sys.argv = [method, *flags]
    with contextlib.suppress(Measured):
        script.main(*script.make_parser().parse_args_and_config())
