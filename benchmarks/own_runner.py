"""Runs what `posttrain sft|dpo` runs, with the recorder in it: `own_runner.py sft|dpo RECORD --its --flags`."""

import sys

import recorder

from posttrain.config import parse_command_line
from posttrain.training import run

if __name__ == "__main__":
    method, record, *flags = sys.argv[1:]
    recorder.install(record)
    config, _ = parse_command_line(method, flags)
    run(config)
