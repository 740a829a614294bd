"""`posttrain plan`: what a run will be, before anything of it is loaded.

For programs and tests there is one function:

    from posttrain.config import parse_command_line
    from posttrain.planning import plan

    config, launch = parse_command_line("dpo", ["--model_name_or_path", "folder", "--dataset_name", "pairs.jsonl"])
    found = plan(config, launch, gpu="a100-80gb")       # a Plan; found.to_json() is plain data
    found.fits, found.peak, found.time.total            # bool, bytes of a process or GPU, seconds
    found.steps.number, found.num_trained, found.findings

    plan(config, launch=None, *, gpu=None, memory_gib=None, most_rows=20_000, tokenizer=None, probe=None) -> Plan

`model_name_or_path` may be a folder with config.json and a tokenizer and no weights, and `dataset_name` any data that
training would read. `gpu` is a key of `posttrain.planning.devices.GPUS`, None this machine; `probe` is for the command.
Mistakes are `posttrain.errors.UserError`, as in training.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from posttrain.planning.options import Request, help_text, parse_plan
from posttrain.terminal import say
from posttrain.trackers import be_quiet

if TYPE_CHECKING:
    from posttrain.config import CommonConfig, LaunchOptions
    from posttrain.planning.report import Plan

__all__ = ["plan", "run"]


def plan(config: CommonConfig, launch: LaunchOptions | None = None, **options: Any) -> Plan:
    """Plan a run; see `posttrain.planning.estimate.plan`, which imports torch and transformers."""
    from posttrain.planning.estimate import plan as estimate

    return estimate(config, launch, **options)


def run(words: Sequence[str]) -> int:
    """Print a plan, and keep it for the run to compare itself with.

    Args:
        words: behind `posttrain plan`.

    Returns:
        The exit code: 1 where memory or disk do not suffice, else 0.

    Raises:
        UserError: flags, data or model cannot be used.
    """
    if "-h" in words or "--help" in words:
        print(help_text())
        return 0
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without the marks used here
    be_quiet()
    request = parse_plan(words)
    return _list_outcomes(request) if request.flags.outcomes else _print_plan(request)


def _print_plan(request: Request) -> int:
    flags = request.flags
    config, launch = request.parse()
    os.environ.update(launch.env)  # before torch is imported: it counts its threads then
    from posttrain.hub_access import take_token
    from posttrain.inspection.display import ink_for
    from posttrain.planning.display import show
    from posttrain.planning.probe import take_probe
    from posttrain.planning.records import keep

    take_token(config)
    probe = None
    if flags.probe:
        _check_probe(flags.gpu)

        def probe(case: Any, steps: Any) -> Any:
            say(f"Taking {flags.probe_steps} steps of the run, in a folder that is thrown away …")
            return take_probe(case, steps, request.method, request.words, flags.params, flags.probe_steps)

    found = plan(config, launch, gpu=flags.gpu, memory_gib=flags.memory, most_rows=flags.rows, probe=probe)
    if flags.gpu is None:
        keep(found, config)
    print(json.dumps(found.to_json(), indent=1) if flags.format == "json" else show(found, ink_for(flags.color)))
    return 0 if found.fits and found.disk.total <= found.disk.free else 1


def _check_probe(gpu: str | None) -> None:
    from posttrain.errors import UserError

    if gpu is not None:
        raise UserError("--probe measures this machine, and --gpu plans for another one; leave out one of them")


def _list_outcomes(request: Request) -> int:
    from posttrain.inspection.display import ink_for
    from posttrain.planning.display import show_outcomes
    from posttrain.planning.records import errors, outcomes

    found = outcomes(request.words[1] if request.words[:1] == ("--cache_dir",) else None)
    if request.flags.format == "json":
        print(json.dumps({"outcomes": found, "errors": errors(found)}, indent=1))
    else:
        print(show_outcomes(found, ink_for(request.flags.color)))
    return 0
