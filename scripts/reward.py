"""Reward modeling: the stage `reward`.

    python scripts/reward.py [--params params.yaml] [--learning_rate 1e-4 ...]

Flags win over the file's section `reward`, whose output_dir, metrics_file and plots_file say what is written.
"""

import sys
from pathlib import Path

# The code beside this script, not an installed one: in the copies that DVC makes of a commit, that of the commit.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from posttrain.config import CommonConfig
from posttrain.errors import report_mistakes
from posttrain.experiment.params import stage_config
from posttrain.launch import train


def main() -> int:
    # Load the section: a typo ends here, before torch is imported.
    config, launch = stage_config("reward", sys.argv[1:])
    # Check paths and the head of the data, then build, train and save in this process, or in each of those that
    # accelerate_config asks for.
    return train(config, launch, [__file__, *sys.argv[1:]], build_and_train)


def build_and_train(config: CommonConfig) -> None:
    from posttrain.methods.reward import Reward
    from posttrain.training import run

    run(Reward(config))


if __name__ == "__main__":
    sys.exit(report_mistakes(main))
