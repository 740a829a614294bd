"""The command `posttrain METHOD ...`, and launching it in several processes.

A run in one process happens right here. Any other is handed to `accelerate launch`, which runs the same command in
each process; POSTTRAIN_LAUNCHED tells those that they are it.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import FrameType

from posttrain.config import (
    METHODS,
    CommonConfig,
    LaunchOptions,
    check_paths,
    help_page,
    load_yaml,
    parse_command_line,
    suggestion,
)
from posttrain.errors import UserError

ONE_PROCESS = (None, "single_gpu", "cpu")
LAUNCHED = "POSTTRAIN_LAUNCHED"
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The words after `posttrain`; None: those of this process.

    Returns:
        The exit code: 0, 2 for a mistake of the user, or that of the launched processes.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    return report_mistakes(lambda: _run_command(words))


def report_mistakes(run: Callable[[], int]) -> int:
    """Call `run` and return its exit code; a UserError becomes one line on stderr and exit code 2."""
    try:
        return run()
    except UserError as error:
        print(f"posttrain: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("posttrain: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def train(config: CommonConfig, launch: LaunchOptions, command: Sequence[str]) -> int:
    """Train in this process, or in as many others as the launch options ask for.

    Args:
        config: What to do.
        launch: In which processes.
        command: What another process has to run for the same, as words after `accelerate launch`.

    Returns:
        The exit code.

    Raises:
        UserError: A path of the config or a launch option is wrong.
    """
    os.environ.update(launch.env)
    check_paths(config)
    _show_progress()
    if config.dataset_name is not None and Path(config.dataset_name).exists():
        # Before anything heavy is imported or launched, so that a mistake in the data is told at once.
        from posttrain.data.prepare import check

        check(config, config.data_kind)
    launched = LAUNCHED in os.environ or "LOCAL_RANK" in os.environ
    if not launched and _needs_launcher(launch):
        return supervise(launcher_command(launch, command), os.environ | launcher_environment(launch))
    if launched:
        _settle_on_cpu(config)
    from posttrain.training import run

    run(config)
    return 0


def launcher_command(launch: LaunchOptions, command: Sequence[str]) -> list[str]:
    """The command line that runs `command` in several processes.

    Args:
        launch: Which processes.
        command: A script or `-m module`, and its arguments.
    """
    name = launch.accelerate_config or ("multi_gpu" if launch.config_file is None else None)
    words = ["--config_file", str(_accelerate_file(launch))]
    for option in ("num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port"):
        value = getattr(launch, option)
        if value is not None:
            words += [f"--{option}", str(value)]
    settings = load_yaml(_accelerate_file(launch))
    if (
        launch.main_process_port is None
        and "main_process_port" not in settings
        and _num_machines(launch, settings) == 1
    ):
        words += ["--main_process_port", str(_free_port())]
    if name == "cpu":
        words.append("--multi_gpu")  # accelerate's word for one process per device; on a CPU it does the same
    return [sys.executable, "-m", "accelerate.commands.launch", *words, *command]


def launcher_environment(launch: LaunchOptions) -> dict[str, str]:
    """The variables that the processes get: the mark that they are launched, and their share of the cores."""
    settings = load_yaml(_accelerate_file(launch))
    processes = launch.num_processes or settings.get("num_processes") or 1
    here = max(1, int(processes) // _num_machines(launch, settings))
    share = max(1, len(os.sched_getaffinity(0)) // here)
    return {LAUNCHED: "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(share))}


def supervise(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command to its end, passing signals on to it.

    Args:
        command: The words of the command.
        environment: All of its variables.

    Returns:
        Its exit code, or 128 + N where signal N ended it.
    """
    # In a session of its own, so that Ctrl-C reaches it once, from here, and not a second time from the terminal.
    child = subprocess.Popen(command, env=dict(environment), start_new_session=True)

    def forward(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


class _ToStderr(logging.Handler):
    """To whatever stderr is when the message comes."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def _show_progress() -> None:
    """What posttrain says of a run (rows read, cut, dropped; ways taken) goes to stderr, one line a message."""
    log = logging.getLogger("posttrain")
    if not log.handlers:
        log.addHandler(_ToStderr())
        log.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)


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
    return train(config, launch, ["-m", "posttrain.cli", *words])


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


def _needs_launcher(launch: LaunchOptions) -> bool:
    processes = (launch.num_processes or 1) * (launch.num_machines or 1)
    if launch.accelerate_config == "single_gpu" and processes > 1:
        raise UserError("accelerate_config single_gpu is one process; use multi_gpu, or leave num_processes out")
    return processes > 1 or launch.accelerate_config not in ONE_PROCESS or launch.config_file is not None


def _accelerate_file(launch: LaunchOptions) -> Path:
    """The file of accelerate settings: a path, or a name looked up here, in the package and in its repository."""
    if launch.accelerate_config is not None and launch.config_file is not None:
        raise UserError("accelerate_config and config_file name the same thing; give one of them")
    given = launch.config_file or launch.accelerate_config or "multi_gpu"
    if Path(given).is_file():
        return Path(given)
    package = Path(__file__).resolve().parent
    folders = [Path("accelerate_configs"), package / "accelerate_configs", package.parents[1] / "accelerate_configs"]
    for folder in folders:
        if (folder / f"{given}.yaml").is_file():
            return folder / f"{given}.yaml"
    names = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
    flag = "config_file" if launch.config_file is not None else "accelerate_config"
    raise UserError(f"{flag}: {given} is neither a file nor one of {', '.join(names)}{suggestion(given, names)}")


def _num_machines(launch: LaunchOptions, settings: Mapping[str, object]) -> int:
    return launch.num_machines or int(str(settings.get("num_machines") or 1))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _settle_on_cpu(config: CommonConfig) -> None:
    """In one of several processes without an accelerator, transformers finds the others only with use_cpu."""
    import torch

    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available():
        config.use_cpu = True


if __name__ == "__main__":
    sys.exit(main())
