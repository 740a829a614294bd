"""The command `posttrain METHOD ...`."""

import sys
from collections.abc import Sequence
from importlib.metadata import version

from posttrain.config import METHODS, CommonConfig, PolicyConfig, help_page, parse_command_line, suggestion
from posttrain.errors import UserError, report_mistakes
from posttrain.launch import train


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The words after `posttrain`; None: those of this process.

    Returns:
        The exit code: 0, 2 for a mistake of the user, or that of the launched processes.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    return report_mistakes(lambda: _run_command(words))


def _run_command(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        print(f"posttrain {version('posttrain')}")
        return 0
    method, *flags = words
    if method not in METHODS:
        raise UserError(f"{method!r} is not a method ({', '.join(METHODS)}){suggestion(method, METHODS)}")
    if "-h" in flags or "--help" in flags:
        print(help_page(method))
        return 0
    config, launch = parse_command_line(method, flags)
    return train(config, launch, ["-m", "posttrain.cli", *words], _train, _check_rewards)


def _check_rewards(config: CommonConfig, columns: set[str] | None) -> None:
    if isinstance(config, PolicyConfig):
        from posttrain.rollout.rewards.check import check_rewards

        check_rewards(config, columns)


def _train(config: CommonConfig) -> None:
    from posttrain.methods import Method
    from posttrain.methods.dpo import DPO
    from posttrain.methods.grpo import GRPO
    from posttrain.methods.reward import Reward
    from posttrain.methods.rloo import RLOO
    from posttrain.methods.sft import SFT
    from posttrain.training import run

    methods: dict[str, type[Method]] = {"sft": SFT, "reward": Reward, "dpo": DPO, "grpo": GRPO, "rloo": RLOO}
    run(methods[config.method](config))


def _overview() -> str:
    methods = [f"  {name:<8}{config.summary}" for name, config in METHODS.items()]
    return "\n".join(
        [
            "Usage: posttrain METHOD --model_name_or_path MODEL --dataset_name DATA [--flag value ...]",
            "",
            "Methods:",
            *methods,
            "",
            "posttrain METHOD --help lists a method's flags; posttrain --version tells the version.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
