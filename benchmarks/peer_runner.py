"""Runs the peer's own script in the peer's own environment: `peer_runner.py METHOD RECORD --its --flags`."""

import importlib
import sys

import recorder

if __name__ == "__main__":
    method, record, *flags = sys.argv[1:]
    recorder.install(record)
    script = importlib.import_module(f"trl.scripts.{method}")
    sys.argv = [method, *flags]
    script.main(*script.make_parser().parse_args_and_config())
