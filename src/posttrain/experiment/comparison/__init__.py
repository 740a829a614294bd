"""`posttrain compare A B`: what two experiments were told, what came out, and which differences are more than noise."""

import argparse
from collections.abc import Sequence

from posttrain.experiment.command_words import Words

USAGE = "posttrain compare [A [B]] [--all] [--format text|md|json]"
_DESCRIPTION = """A (HEAD, where it is left out) and B (the working tree) are each one of
  workspace         the working tree
  main, v1, 1a2b3c  a revision of git
  beta-0.05-seed-0  an experiment of DVC (dvc exp list --all-commits)
  path/to/folder    a folder with a copy of params.yaml, metrics/ and results/
  x-0,x-1  or  x-*  several of these that differ in seeds alone: differences are then judged over seeds"""


def run(words: Sequence[str]) -> int:
    """Print a comparison.

    Args:
        words: behind `posttrain compare`.

    Raises:
        UserError: an experiment does not exist, or those of one side are not repetitions of each other.
    """
    options = parse(words)

    from posttrain.experiment.comparison.compare import compare  # numpy, which --help does not wait for
    from posttrain.experiment.comparison.display import FORMATS
    from posttrain.experiment.comparison.sides import read_sides

    print(FORMATS[options.format](compare(*read_sides(options.a, options.b)), options.all))
    return 0


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The options; raises a UserError for what is none."""
    parser = Words(USAGE, _DESCRIPTION)
    parser.add_argument("a", metavar="A", nargs="?", default="HEAD")
    parser.add_argument("b", metavar="B", nargs="?", default="workspace")
    parser.add_argument("--all", action="store_true", help="every metric, those that only help to look for reasons too")
    parser.add_argument(
        "--format", choices=("text", "md", "json"), default="text", help="[text]; json has every metric"
    )
    return parser.parse_args(list(words))
