"""The command `posttrain METHOD ...`, and the commands beside the methods."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version

from posttrain.config import COMMANDS, METHODS, CommonConfig, PolicyConfig, help_page, parse_command_line, suggestion
from posttrain.errors import UserError, report_mistakes
from posttrain.launch import train
from posttrain.loading import collector_at_rest


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The words after `posttrain`; None: those of this process.

    Returns:
        The exit code: 0, 1 where memory ran out or a check failed, 2 for a mistake of the user, or that of the
            launched processes.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = report_mistakes(lambda: _run_command(words))
        sys.stdout.flush()
    except BrokenPipeError:  # a reader such as `head` has seen enough; Python will flush once more, into nothing
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    return code


def _run_command(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        print(f"posttrain {version('posttrain')}")
        return 0
    name, *rest = words
    if name in COMMANDS:
        return _RUN[name](rest)
    if name not in METHODS:
        known = [*METHODS, *COMMANDS]
        raise UserError(f"{name!r} is no method or command ({', '.join(known)}){suggestion(name, known)}")
    if "-h" in rest or "--help" in rest:
        print(help_page(name))
        return 0
    config, launch = parse_command_line(name, rest)
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


# The commands import what they need when they are called, so that help, and a mistake, come at once.


def _inspect(words: list[str]) -> int:
    from posttrain import inspection

    with collector_at_rest():  # nearly all of its time goes into loading
        return inspection.run(words)


def _plan(words: list[str]) -> int:
    from posttrain import planning

    with collector_at_rest():  # nearly all of its time goes into loading
        return planning.run(words)


def _report(words: list[str]) -> int:
    from posttrain.experiment import report

    return report.run(words)


def _environment(words: list[str]) -> int:
    from posttrain import environment

    return environment.run(words)


def _compare(words: list[str]) -> int:
    from posttrain.experiment import comparison

    return comparison.run(words)


def _sweep(words: list[str]) -> int:
    from posttrain.experiment import sweep

    return sweep.run(words)


def _experiments(words: list[str]) -> int:
    from posttrain.experiment import experiments_table

    return experiments_table.run(words)


def _status(words: list[str]) -> int:
    from posttrain.experiment import status

    return status.run(words)


def _verify(words: list[str]) -> int:
    from posttrain.experiment import verify

    return verify.run(words)


def _repro_check(words: list[str]) -> int:
    from posttrain.experiment import repro_check

    return repro_check.run(words)


def _completion(words: list[str]) -> int:
    from posttrain import completion

    return completion.run(words)


def _check(words: list[str]) -> int:
    from posttrain.experiment.gates import command

    return command.run(words)


_RUN: dict[str, Callable[[list[str]], int]] = {
    "inspect": _inspect,
    "plan": _plan,
    "check": _check,
    "compare": _compare,
    "sweep": _sweep,
    "experiments": _experiments,
    "report": _report,
    "status": _status,
    "verify": _verify,
    "repro-check": _repro_check,
    "env": _environment,
    "completion": _completion,
}


def _overview() -> str:
    summaries = {name: config.summary for name, config in METHODS.items()}
    return "\n".join(
        [
            "Usage: posttrain METHOD --model_name_or_path MODEL --dataset_name DATA [--flag value ...]",
            "       posttrain COMMAND [...]",
            "",
            "Methods:",
            *(f"  {name:<12}{summary}" for name, summary in summaries.items()),
            "",
            "Commands:",
            *(f"  {name:<12}{summary}" for name, summary in COMMANDS.items()),
            "",
            "To begin with: posttrain inspect DATA --model_name_or_path MODEL",
            "posttrain METHOD --help lists a method's flags; posttrain --version tells the version.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
