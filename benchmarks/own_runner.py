"""Runs what `posttrain METHOD` runs, with the recorder in it: `own_runner.py METHOD RECORD --its --flags`."""

import sys

from posttrain import cli
from posttrain.config import CommonConfig


def recorded(config: CommonConfig) -> None:
    """Trains; the recorder, which needs transformers, comes where posttrain would load it by itself."""
    import recorder

    recorder.install(record)
    train(config)


if __name__ == "__main__":
    method, record, *flags = sys.argv[1:]
    train, cli._train = cli._train, recorded
    sys.exit(cli.main([method, *flags]))
