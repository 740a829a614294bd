"""Direct preference optimisation: the stage `dpo`.

    python scripts/dpo.py [--params params.yaml] [--learning_rate 1e-5 ...]

Flags win over the file's section `dpo`, whose output_dir, metrics_file and plots_file say what is written.
"""

import sys

from posttrain.cli import report_mistakes, train
from posttrain.experiment.params import stage_config


def main() -> int:
    # Load the section: a typo ends here, before torch is imported.
    config, launch = stage_config("dpo", sys.argv[1:])
    # Check the paths; then posttrain.training.run builds data and model, trains, saves, and writes metrics and curve,
    # in this process or in each of those that accelerate_config asks for.
    return train(config, launch, [__file__, *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(report_mistakes(main))
