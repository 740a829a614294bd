"""Training in this process or in several.

A run in one process happens right here. Any other is handed to `accelerate launch`, which runs the same command in
each process; POSTTRAIN_LAUNCHED tells those that they are it.
"""

import contextlib
import importlib.util
import logging
import os
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from posttrain.config import CommonConfig, LaunchOptions, check_paths, remark, suggestion
from posttrain.config.accelerate_file import accelerate_settings, check_parallelism
from posttrain.errors import Stopped, UserError, install
from posttrain.gpu_slots import take_slot
from posttrain.hub_access import BUILDERS, take_token, without_token
from posttrain.hub_access import check as check_hub
from posttrain.left_locks import tell_of_left_locks
from posttrain.loading import collector_at_rest
from posttrain.machine import num_cores
from posttrain.meeting import meeting_of, network_variables
from posttrain.out_of_memory import advice_when_out_of_memory
from posttrain.runs import check_own
from posttrain.stop import LAUNCHED, end_with_parent, handled, heeded, held_back, is_launched
from posttrain.terminal import say
from posttrain.trackers import be_quiet, check_trackers, tracker_errors
from posttrain.waiting import wait_for_all

ONE_PROCESS = (None, "single_gpu", "cpu")


def train(
    config: CommonConfig,
    launch: LaunchOptions,
    command: Sequence[str],
    run: Callable[[CommonConfig], object],
    also_check: Callable[[Any, set[str] | None], object] | None = None,
) -> int:
    """Train in this process, or in as many others as the launch options ask for.

    Args:
        config: What to do.
        launch: In which processes.
        command: What another process has to run for the same, as words after `accelerate launch`.
        run: Trains in this process; imports what it needs when it is called.
        also_check: Given the config, and the columns of the data where they are known, looks for mistakes that only
            this method knows; quick.

    Returns:
        The exit code.

    Raises:
        UserError: A path of the config or a launch option is wrong.
    """
    with handled(), collector_at_rest():
        outer = _prepare(config, launch, command, also_check)
        if outer is None:
            settled = _among_others(config) if is_launched() else contextlib.nullcontext()
            with advice_when_out_of_memory(config), settled, tracker_errors():
                run(config)
            return 0
    return supervise(outer, os.environ | launcher_environment(launch))


def _prepare(
    config: CommonConfig,
    launch: LaunchOptions,
    command: Sequence[str],
    also_check: Callable[[Any, set[str] | None], object] | None,
) -> list[str] | None:
    """Looks for mistakes; returns the command line of the launcher where one is needed."""
    if LAUNCHED in os.environ:
        end_with_parent(signal.SIGKILL)
    be_quiet()
    os.environ.update(launch.env)
    take_token(config)
    check_paths(config)
    check_own(config)
    _show_progress(config)
    columns = None
    if _data_is_here(config):
        # Before anything heavy is imported or launched, so that a mistake in the data is told at once.
        from posttrain.data.prepare import check

        columns = check(config, config.data_kind)
    if also_check is not None:
        also_check(config, columns)
    if LAUNCHED not in os.environ:  # what another launcher has started is checked, too
        check_trackers(config)
        check_hub(config)
        idle = remark(config)
        if idle is not None:
            logging.getLogger(__name__).info(idle)
    if not is_launched():
        if not _needs_launcher(launch):
            if not config.use_cpu:
                take_slot()  # whatever there was to complain of has been said: nobody waits for a GPU to hear it
        elif _settle_processes(launch, config):
            return launcher_command(launch, without_token(command))
    return None


def _data_is_here(config: CommonConfig) -> bool:
    """Whether all rows come from files of this machine."""
    names = [config.dataset_name] if config.dataset_name else [source.path for source in config.datasets]
    return all(Path(name).expanduser().exists() or name in BUILDERS for name in names)


def launcher_command(launch: LaunchOptions, command: Sequence[str]) -> list[str]:
    """The command line that runs `command` in several processes.

    Args:
        launch: Which processes.
        command: A script or `-m module`, and its arguments.
    """
    name = launch.accelerate_config or ("multi_gpu" if launch.config_file is None else None)
    settings = accelerate_settings(accelerate_file(launch))
    words, meeting = ["--config_file", str(accelerate_file(launch))], meeting_of(launch, settings)
    if meeting is not None:
        words += meeting.words()
    else:
        for option in ("num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port"):
            value = getattr(launch, option)
            if value is not None:
                words += [f"--{option}", str(value)]
        if launch.main_process_port is None and "main_process_port" not in settings:
            words += ["--main_process_port", str(_free_port())]
    if name == "cpu" or settings.get("distributed_type") == "MULTI_CPU":
        # accelerate's word for one process per device; on a CPU it does the same. Without it, a file of several CPU
        # processes starts one, unless MPI is there to start the others.
        words.append("--multi_gpu")
    return [sys.executable, "-m", "posttrain.processes", *words, *command]


def launcher_environment(launch: LaunchOptions) -> dict[str, str]:
    """The variables that the processes get: the mark that they are launched, their share of the cores, and on several
    machines the network between them."""
    settings = accelerate_settings(accelerate_file(launch))
    meeting = meeting_of(launch, settings)
    processes = int(launch.num_processes or settings.get("num_processes") or 1)
    here = processes if meeting is None else meeting.processes // meeting.machines
    share = max(1, num_cores() // max(1, here))
    network = {} if meeting is None else network_variables(meeting, os.environ)
    return {LAUNCHED: "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(share))} | network


def supervise(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command to its end, passing signals on to it.

    Args:
        command: The words of the command, which starts with signals held back, and takes them when it is ready.
        environment: All of its variables.

    Returns:
        Its exit code, or 128 + N where signal N ended it.
    """
    with held_back():
        # In a session of its own, so that Ctrl-C reaches it once, from here, and not a second time from the terminal.
        child = subprocess.Popen(command, env=dict(environment), start_new_session=True)

        def forward(number: int, frame: FrameType | None) -> None:
            child.send_signal(number)

        before = {number: signal.signal(number, forward) for number in heeded()}
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


class _ToStderr(logging.Handler):
    """To whatever stderr is when the message comes."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


def _show_progress(config: CommonConfig) -> None:
    """What posttrain says of a run (rows read, cut, dropped; ways taken) goes to stderr, one line a message."""
    log = logging.getLogger("posttrain")
    if not log.handlers:
        log.addHandler(_ToStderr())
    is_main = os.environ.get("RANK", "0") == "0"
    level = (config.log_level if is_main else config.log_level_replica) or "passive"
    log.setLevel({"passive": "INFO" if is_main else "ERROR", "detail": "DEBUG"}.get(level, level.upper()))


def _needs_launcher(launch: LaunchOptions) -> bool:
    processes = (launch.num_processes or 1) * (launch.num_machines or 1)
    if launch.accelerate_config == "single_gpu" and processes > 1:
        raise UserError("accelerate_config single_gpu is one process; use multi_gpu, or leave num_processes out")
    return processes > 1 or launch.accelerate_config not in ONE_PROCESS or launch.config_file is not None


def accelerate_file(launch: LaunchOptions) -> Path:
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
    raise UserError(
        f"{flag}: {given} is neither a file nor one of {', '.join(names)}{suggestion(given, names)}",
        "distributed.md#which-configuration",
    )


def _num_gpus() -> int:
    import torch  # takes two seconds, for which nobody waits who trains on the CPU

    return torch.accelerator.device_count()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _settle_processes(launch: LaunchOptions, config: CommonConfig) -> bool:
    """Sets the number of processes where only the name of a configuration is given: one for each GPU of this machine,
    or one. Looks whether the machine has what is asked for.

    Returns:
        Whether a launcher is still needed: one process without sharding is this one.
    """
    settings = accelerate_settings(accelerate_file(launch))
    deepspeed = settings.get("distributed_type") == "DEEPSPEED" or config.deepspeed is not None
    if deepspeed and importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            "this configuration trains with DeepSpeed, which is not installed: "
            f"{install('deepspeed')}; or take --accelerate_config fsdp2, which needs nothing more",
            page="troubleshooting.md#launching",
        )
    if deepspeed:
        tell_of_left_locks()
    machines = int(launch.num_machines or settings.get("num_machines") or 1)
    gpus = 0 if config.use_cpu or settings.get("use_cpu") else _num_gpus()
    if launch.num_processes is None and _is_shipped(launch):
        launch.num_processes = machines * max(1, gpus)
        on = f"each of the {gpus} GPUs" if gpus > 1 else "the GPU" if gpus else "the CPU"
        of = f" of each of {machines} machines" if machines > 1 else ""
        more = "" if gpus else "; --num_processes N takes more"
        logging.getLogger(__name__).info("%s: 1 process on %s%s%s", launch.accelerate_config, on, of, more)
    wanted = launch.num_processes or int(settings.get("num_processes") or 1)
    meeting = meeting_of(launch, settings)
    if gpus and wanted > machines * gpus:
        of_all = f" for {machines} machines" if machines > 1 else ""
        raise UserError(
            f"{wanted // machines} processes are asked for and this machine has {gpus} GPU{'s' * (gpus > 1)}, one a "
            f"process: --num_processes {machines * gpus}{of_all}",
            page="troubleshooting.md#launching",
        )
    return meeting is not None or wanted > 1 or settings.get("distributed_type") != "MULTI_GPU"


def _is_shipped(launch: LaunchOptions) -> bool:
    return launch.accelerate_config is not None and not Path(launch.accelerate_config).is_file()


@contextlib.contextmanager
def _among_others(config: CommonConfig) -> Iterator[None]:
    """For the time in one of several processes. Without an accelerator, transformers finds the others only with
    use_cpu."""
    import torch

    check_parallelism(os.environ, "the environment")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available():
        config.use_cpu = True
    # What torch will do otherwise one day says each process for itself, and no user can change it.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)  # nobody writes into it
    try:
        yield
    except Stopped:
        _leave_the_others()
        raise
    _leave_the_others("writing the model")


def _leave_the_others(doing: str | None = None) -> None:
    """Ends what connects the processes; those that are still doing something are waited for."""
    import torch
    from accelerate import PartialState

    if torch.distributed.is_initialized():
        if doing is not None:
            wait_for_all(doing)
            PartialState().wait_for_everyone()  # nobody looks into the store any more, which the first may take along
        torch.distributed.destroy_process_group()  # a process that leaves without it may crash on its way out
