"""What `posttrain plan` is told: a method, its flags as for training, and flags of its own."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.config import METHODS, CommonConfig, LaunchOptions, parse_command_line, suggestion
from posttrain.config.fields import convert, flag, flags_of, is_bool
from posttrain.errors import UserError

USAGE = "posttrain plan METHOD [--params FILE] [--flag value ...]"
_INDENT = 18


@dataclass(kw_only=True)
class PlanFlags:
    """The flags that only `posttrain plan` has."""

    params: str | None = flag(None, "Take what flags do not say from the method's section of this file.")
    probe: bool = flag(False, "Take a few real steps in a folder that is thrown away, and calibrate by them.")
    probe_steps: int = flag(6, "So many of them.", low=3, high=100)
    gpu: str | None = flag(None, "Plan for this GPU, which need not be here, such as a100-80gb, h100, rtx4090, l4.")
    memory: float | None = flag(
        None, "GiB of memory of the GPU (or of this machine), where it is not all of it.", low=0.1
    )
    rows: int = flag(20_000, "Rows to tokenise of data that is streamed, or large and not prepared yet.", low=100)
    format: str = flag("text", "How to print it.", choices=("text", "json"))
    color: str = flag("auto", "Mark in colour: auto is on a terminal.", choices=("auto", "always", "never"))
    outcomes: bool = flag(False, "List what was planned against what it took, of all planned runs that have ended.")


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Args:
        flags: of plan itself.
        method: of training; empty with --outcomes alone.
        words: flags of the method, as they were typed.
    """

    flags: PlanFlags
    method: str
    words: tuple[str, ...]

    def parse(self) -> tuple[CommonConfig, LaunchOptions]:
        """The run's config, and how it is launched."""
        return parse_run(self.method, self.words, self.flags.params)


def parse_run(method: str, words: Sequence[str], params: str | None) -> tuple[CommonConfig, LaunchOptions]:
    """A run from its words, as training reads them.

    Args:
        method: of training.
        words: its flags.
        params: file with a section of the method; flags win over it.

    Raises:
        UserError: a flag or key is wrong.
    """
    if params is None:
        return parse_command_line(method, words)
    from posttrain.experiment.params import stage_config

    return stage_config(method, ["--params", params, *words])


def parse_plan(argv: Sequence[str]) -> Request:
    """Understand the words after `posttrain plan`.

    Args:
        argv: the method and flags.

    Raises:
        UserError: there is no such method, or one of plan's own flags is wrong.
    """
    words = [*argv]
    method = words.pop(0) if words and not words[0].startswith("--") else ""
    own, rest = _divided(words)
    flags = PlanFlags(**own)
    if not method and not flags.outcomes:
        raise UserError(f"name a method ({', '.join(METHODS)}); usage: {USAGE}")
    if method and method not in METHODS:
        raise UserError(f"{method!r} is no method ({', '.join(METHODS)}){suggestion(method, METHODS)}; usage: {USAGE}")
    if not method and rest and not (rest[0] == "--cache_dir" and len(rest) == 2):
        raise UserError(f"{rest[0]}: --outcomes stands alone, or with --cache_dir")
    return Request(flags, method, tuple(rest))


def _divided(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The values of plan's own flags, and all other words."""
    fields = flags_of(PlanFlags)
    own: dict[str, Any] = {}
    rest: list[str] = []
    name = ""  # of the own flag whose value may follow
    for word in words:
        typed, has_value, value = word[2:].partition("=")
        plain = typed.replace("-", "_")
        if word.startswith("--") and plain in fields:
            field = fields[plain]
            own[plain] = convert(field, value, f"--{plain}") if has_value else True
            name = "" if has_value else plain
            if not has_value and not is_bool(field):
                own[plain] = None
        elif (
            word.startswith("--") and plain.removeprefix("no_") in fields and is_bool(fields[plain.removeprefix("no_")])
        ):
            own[plain.removeprefix("no_")], name = False, ""
        elif name and not word.startswith("--"):
            own[name], name = convert(fields[name], word, f"--{name}"), ""
        else:
            rest.append(word)
            name = ""
    missing = next((one for one, value in own.items() if value is None), None)
    if missing is not None:
        raise UserError(f"--{missing}: a value is missing ({fields[missing].metadata['help']})")
    return own, rest


def help_text() -> str:
    """What `posttrain plan --help` prints."""
    lines = [
        f"Usage: {USAGE}",
        "       posttrain plan --outcomes",
        "",
        "What a run will be, before anything of it is loaded: rows, tokens and steps, parameters that are trained,",
        "memory, time and disk, each with what was assumed, and what to look at before it is started. The model's",
        "weights are not needed, its config.json and tokenizer are. The plan is kept; when the run ends, it says how",
        "far off the plan was.",
        "",
    ]
    for name, each in flags_of(PlanFlags).items():
        default = f" [{each.default}]" if each.default not in (None, False) else ""
        choices = f" One of: {', '.join(each.metadata['choices'])}." if each.metadata["choices"] else ""
        head = f"  --{name}".ljust(_INDENT)
        lines += textwrap.wrap(f"{head}{each.metadata['help']}{choices}{default}", 100, subsequent_indent=" " * _INDENT)
    lines += ["", "All flags of the method are taken too: `posttrain METHOD --help` lists them."]
    return "\n".join(lines)
