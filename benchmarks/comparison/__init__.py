"""Whole training steps of posttrain beside those of its peer, trl: `python -m benchmarks.comparison --help`."""
