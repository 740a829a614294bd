"""Files that `accelerate config` writes: read as strictly as our own, before a process is started by them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.config.common import CommonConfig
from posttrain.config.fields import flags_of, suggestion
from posttrain.config.json_text import show
from posttrain.config.yaml_files import load_yaml
from posttrain.errors import UserError

PAGE = "distributed.md#which-configuration"
KINDS = ["NO", "MULTI_CPU", "MULTI_GPU", "MULTI_NPU", "MULTI_MLU", "MULTI_SDAA", "MULTI_MUSA", "MULTI_HPU"]
KINDS += ["MULTI_XPU", "MULTI_NEURON", "DEEPSPEED", "FSDP", "XLA", "MEGATRON_LM", "TP"]
# Of accelerate's parallelism_config, and of the variables that it hands to the processes: what several processes share.
SHARED = {"cp_size": "a row", "sp_size": "a row", "tp_size": "a layer"}


def accelerate_settings(path: str | Path) -> dict[Any, Any]:
    """The settings in a file of accelerate.

    Args:
        path: of the file, YAML or JSON.

    Raises:
        UserError: it cannot be read, counts processes or machines with something that is no number, or has several
            processes share a row.
    """
    settings = load_yaml(path)
    kind = settings.get("distributed_type", "NO")
    if kind not in KINDS:
        raise UserError(
            f"{path}: distributed_type: {show(kind)} is not one of {', '.join(KINDS)}{suggestion(str(kind), KINDS)}",
            PAGE,
        )
    for name, low in (("num_processes", 1), ("num_machines", 1), ("machine_rank", 0), ("main_process_port", 0)):
        value = settings.get(name)
        number = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value
        if value is not None and (isinstance(number, bool) or not isinstance(number, int) or number < low):
            raise UserError(f"{path}: {name}: {show(value)} is not a whole number of at least {low}", PAGE)
    ours = [name for name in settings if name in flags_of(CommonConfig)]
    if ours and "distributed_type" not in settings and "compute_environment" not in settings:
        raise UserError(f"{path}: {', '.join(ours[:3])} are flags of posttrain; give their file with --config", PAGE)
    check_parallelism(settings.get("parallelism_config"), f"{path}: parallelism_config")
    return settings


def check_parallelism(settings: Any, where: str) -> None:
    """Refuse to have several processes work on one row: each has rows of its own, and attention sees whole segments.

    Args:
        settings: accelerate's, or the environment of a process that accelerate has started.
        where: they stand, for the message.

    Raises:
        UserError: with what serves a long row instead.
    """
    given = {str(name).lower(): value for name, value in settings.items()} if isinstance(settings, Mapping) else {}
    for name, what in SHARED.items():
        size = str(given.get(f"parallelism_config_{name}") or 1)
        if size.isascii() and size.isdigit() and int(size) > 1:
            raise UserError(
                f"{where}: {name} {size} has {size} processes share {what}, and here each trains on rows of its own; "
                "leave it out, and fit long rows with --gradient_checkpointing, --activation_offloading and "
                "--accelerate_config fsdp2",
                "long_sequences.md#context-parallelism",
            )
