"""`posttrain sweep dpo.beta=0.05,0.1,0.5 dpo.seed=0..2`: a grid of values as experiments of DVC, several at a time."""

import argparse
from collections.abc import Sequence

from posttrain.experiment.command_words import Words

USAGE = "posttrain sweep KEY=VALUES ... [--jobs N] [--stages STAGE ...] [--dry]"
_DESCRIPTION = """Runs every combination of the values as an experiment of DVC, and ends with a table of what came out.
  dpo.beta=0.05,0.1,0.5          keys of params.yaml, section first, and values with commas between
  dpo.seed=0..4                  whole numbers from 0 to 4
  grpo.reward_funcs=[a],[a,b]    a list is one value
  +dpo.label_smoothing=0,0.1     a flag that params.yaml does not have"""


def run(words: Sequence[str]) -> int:
    """Run a sweep.

    Args:
        words: behind `posttrain sweep`.

    Returns:
        The exit code: 1 where a combination failed.

    Raises:
        UserError: a key, a value or a stage is wrong; told before anything is queued.
        Stopped: Ctrl-C; the queue goes on, and the message says how to stop it.
    """
    options = parse(words)

    from posttrain.experiment.sweep.grid import check_jobs, check_stages, read_grid
    from posttrain.experiment.sweep.queue import run_grid

    grid = read_grid(options.settings)
    check_stages(options.stages)
    jobs = check_jobs(options.jobs)
    if options.dry:
        print("\n".join(f"{run.name:<40}  {' '.join(run.settings)}" for run in grid))
        return 0
    return run_grid(grid, jobs, options.stages)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The options; raises a UserError for what is none."""
    parser = Words(USAGE, _DESCRIPTION)
    parser.add_argument("settings", metavar="KEY=VALUES", nargs="+")
    parser.add_argument("--jobs", metavar="N", type=int, help="runs at a time [one a GPU; without GPUs 2]")
    parser.add_argument(
        "--stages", metavar="STAGE", nargs="+", default=[], help="run up to these alone [all of dvc.yaml]"
    )
    parser.add_argument("--dry", action="store_true", help="list the combinations, and run nothing")
    return parser.parse_intermixed_args(list(words))
