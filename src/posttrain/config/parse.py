"""From a command line or a mapping to a checked config."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.config.common import CommonConfig
from posttrain.config.fields import convert, convert_mapping, flag, flags_of, is_bool, label, nearest, takes_list
from posttrain.config.geometry import steps_of_generation
from posttrain.config.json_text import show
from posttrain.config.methods import METHODS
from posttrain.config.policy import PolicyConfig
from posttrain.config.renamed import refusal
from posttrain.config.yaml_files import load_yaml
from posttrain.errors import UserError
from posttrain.stop import is_launched


@dataclass(kw_only=True)
class LaunchOptions:
    """Launching"""

    num_processes: int | None = flag(None, "Processes to train in; unset: what accelerate_config says, or 1.", low=1)
    accelerate_config: str | None = flag(
        None, "single_gpu, multi_gpu, fsdp1, fsdp2, zero1, zero2, zero3, multi_node, cpu, or a file."
    )
    config_file: str | None = flag(None, "A file written by `accelerate config`; as accelerate_config with a file.")
    num_machines: int | None = flag(None, "Machines that take part.", low=1)
    machine_rank: int | None = flag(None, "Number of this machine, from 0.", low=0)
    main_process_ip: str | None = flag(None, "Address of machine 0.")
    main_process_port: int | None = flag(None, "Port of machine 0.", low=0, high=65535)
    env: dict[str, str] = dataclasses.field(default_factory=dict)

    def problems(self) -> Iterator[str]:
        """What is wrong between these flags, one message a mistake."""
        machines = self.num_machines
        if machines is not None and self.machine_rank is not None and self.machine_rank >= machines:
            yield f"machine_rank is {self.machine_rank}, and {machines} machines have the ranks 0 to {machines - 1}"
        if machines is not None and machines > 1 and self.main_process_ip is None and not self._has_file():
            yield f"num_machines {machines} needs main_process_ip, the address of machine 0, by which they meet"
        if machines is not None and self.num_processes is not None and self.num_processes % machines:
            yield (
                f"num_processes {self.num_processes} counts those of all {machines} machines, which get the same "
                f"number each; give a multiple of {machines}"
            )

    def processes(self) -> int | None:
        """How many processes train, over all machines; None where only a file or the hardware says so."""
        # Alone it says nothing of this command: what starts pods sets it in them, for a launcher to read.
        if "WORLD_SIZE" in os.environ and is_launched():
            return int(os.environ["WORLD_SIZE"])
        alone = self.accelerate_config in (None, "single_gpu", "cpu") and self.config_file is None
        return self.num_processes or (1 if alone and (self.num_machines or 1) == 1 else None)

    def _has_file(self) -> bool:
        return any(name and Path(name).is_file() for name in (self.accelerate_config, self.config_file))


@dataclass(kw_only=True)
class FileOption:
    """Settings from a file"""

    config: str | None = flag(None, "YAML file with these flags as keys; the command line wins over it.")


def parse_command_line(
    method: str, argv: Sequence[str], section: Mapping[Any, Any] | None = None, where: str = ""
) -> tuple[CommonConfig, LaunchOptions]:
    """Read the flags of a method.

    Args:
        method: A key of METHODS.
        argv: The words after the method's name.
        section: Settings that hold where neither the command line nor its `--config` file says otherwise.
        where: Where the section stands, such as "params.yaml: dpo".

    Returns:
        The checked config, and how to launch it.

    Raises:
        UserError: A flag or key is unknown, a value is wrong, or two do not fit together.
    """
    cls = METHODS[method]
    words = _split_flags(cls, argv)
    options = _convert_words(cls, words)
    values, origin = dict[str, Any](), ""
    sources = [(section, where)] if section is not None else []
    path = options.pop("config", None)
    if path is not None:
        sources.append((load_yaml(path), str(path)))
    for mapping, origin in sources:
        values |= _convert_section(cls, mapping, origin)
    values |= options
    launch = LaunchOptions(**{name: values.pop(name) for name in (*flags_of(LaunchOptions), "env") if name in values})
    if launch.accelerate_config == "cpu":
        values.setdefault("use_cpu", True)
    for problem in launch.problems():
        raise UserError(f"{origin}: {problem}" if origin else problem)
    config = _build(cls, values, origin)
    processes = launch.processes()
    if isinstance(config, PolicyConfig) and processes is not None:
        steps_of_generation(
            config.num_generations,
            8 if config.per_device_train_batch_size is None else config.per_device_train_batch_size,
            config.gradient_accumulation_steps or 1,
            config.generation_batch_size,
            config.steps_per_generation,
            processes,
        )
    return config, launch


def from_mapping(method: str, mapping: Mapping[Any, Any], where: str) -> CommonConfig:
    """A config from the keys of a YAML file or a section of it.

    Args:
        method: A key of METHODS.
        mapping: Flag names and values.
        where: Where the mapping stands, such as "params.yaml: dpo"; messages begin with it.

    Raises:
        UserError: As for parse_command_line.
    """
    cls = METHODS[method]
    _check_names(cls, mapping, flags_of(cls), where)
    return _build(cls, convert_mapping(cls, mapping, where), where)


def _build(cls: type[CommonConfig], values: dict[str, Any], where: str) -> CommonConfig:
    config = cls(**values, explicit=frozenset(values))
    config.validate(where)
    return config


def _known_flags(cls: type[CommonConfig]) -> dict[str, dataclasses.Field[Any]]:
    return flags_of(cls) | flags_of(LaunchOptions) | flags_of(FileOption)


def _split_flags(cls: type[CommonConfig], argv: Sequence[str]) -> dict[str, list[str]]:
    """The words behind each flag; of a flag given twice the later one counts, as in every shell command.

    A switch that stands as `--no_NAME` keeps that name here.
    """
    known = _known_flags(cls)
    words: dict[str, list[str]] = {}
    name = ""
    for word in argv:
        if word.startswith("--"):
            typed, has_value, value = word[2:].partition("=")
            name = typed.replace("-", "_")
            positive = _switched_off(name, known)
            if positive is None:
                _check_names(cls, [name], known, "")
            for earlier in (positive, name, f"no_{name}"):
                words.pop(earlier or "", None)
            words[name] = [value] if has_value else []
        elif name:
            words[name].append(word)
        else:
            raise UserError(f"{word!r} stands alone; a flag begins with two dashes, such as --learning_rate 1e-5")
    return words


def _switched_off(name: str, known: Mapping[str, dataclasses.Field[Any]]) -> str | None:
    """The switch that `no_NAME` switches off, or None where the name is another thing."""
    positive = name.removeprefix("no_")
    return positive if name not in known and positive in known and is_bool(known[positive]) else None


def _convert_words(cls: type[CommonConfig], words: dict[str, list[str]]) -> dict[str, Any]:
    known = _known_flags(cls)
    values = {}
    for name, given in words.items():
        called = f"--{name}"
        positive = _switched_off(name, known)
        if positive is not None:
            if given:
                raise UserError(f"{called} takes no value; write --{positive} true or --{positive} false")
            values[positive] = False
            continue
        field = known[name]
        if not given and not is_bool(field):
            raise UserError(f"{called}: a value is missing ({field.metadata['help']})")
        if len(given) > 1 and not takes_list(field):
            raise UserError(f"{called}: takes one value, not {len(given)} ({' '.join(given)}); quote text with spaces")
        raw: Any = given if len(given) > 1 else given[0] if given else "true"
        values[name] = convert(field, raw, called)
    return values


def _convert_section(cls: type[CommonConfig], mapping: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """The values of a file or section, which may also hold launch options and `env`."""
    rest = dict(mapping)
    env = rest.pop("env", None)
    _check_names(cls, rest, flags_of(cls) | flags_of(LaunchOptions), where)
    launch = {name: rest.pop(name) for name in flags_of(LaunchOptions) if name in rest}
    values = convert_mapping(cls, rest, where) | convert_mapping(LaunchOptions, launch, where)
    if env is not None:
        if not isinstance(env, dict) or any(isinstance(value, dict | list) for value in env.values()):
            raise UserError(f"{label('env', where)}: wanted variables and their values, such as OMP_NUM_THREADS: 2")
        for name, value in env.items():
            if not str(name) or "=" in str(name) or "\0" in f"{name}{value}":
                raise UserError(f"{label('env', where)}: {show(name)}: {show(value)} is no variable of an environment")
        values["env"] = {str(name): "" if value is None else str(value) for name, value in env.items()}
    return values


def _check_names(cls: type[CommonConfig], names: Iterable[Any], known: Iterable[str], where: str) -> None:
    """Raise for the first name that is no flag, with the best advice there is."""
    known = list(known)
    for name in names:
        if name in known:
            continue
        called = label(str(name), where)
        reason = refusal(str(name))
        if reason:
            raise UserError(f"{called} {reason}")
        others = [method for method, other in METHODS.items() if name in flags_of(other)]
        if others:
            raise UserError(f"{called} is not for {cls.method}, but for {' and '.join(others)}")
        switches = [f"no_{name}" for name, field in flags_of(cls).items() if is_bool(field)] if not where else []
        near = nearest(str(name), [*map(str, known), *switches])
        kind = "key" if where else "flag"
        advice = (
            f"did you mean {label(near, '') if not where else near}?"
            if near
            else f"posttrain {cls.method} --help lists all"
        )
        raise UserError(f"{called}: no such {kind}; {advice}")
