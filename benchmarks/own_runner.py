"""Runs what `posttrain METHOD` runs, with the recorder in it: `own_runner.py METHOD RECORD --its --flags`."""

import sys

import recorder

from posttrain.cli import main

if __name__ == "__main__":
    method, record, *flags = sys.argv[1:]
    recorder.install(record)
    sys.exit(main([method, *flags]))
