"""Scripts that complete the command line in bash, zsh and fish: methods, commands, flags and their values."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from typing import NamedTuple

from posttrain.config import COMMANDS, METHODS, LaunchOptions, suggestion
from posttrain.config.common import DataFlags, ModelFlags
from posttrain.config.effects import refused
from posttrain.config.fields import flags_of, is_bool, takes_list
from posttrain.config.flag_words import FILES, FOLDERS, MAYBE_PATHS
from posttrain.config.methods import LengthFlags, SFTFlags
from posttrain.config.parse import FileOption
from posttrain.errors import UserError

USAGE = """Usage: posttrain completion bash|zsh|fish

Prints a script that completes methods, commands, flags and their values:
  bash  in ~/.bashrc:                  eval "$(posttrain completion bash)"
  zsh   in ~/.zshrc, after compinit:   eval "$(posttrain completion zsh)"
  fish  once:                          posttrain completion fish > ~/.config/fish/completions/posttrain.fish"""
# What may follow flags that take other words, too.
KNOWN_VALUES = {
    "accelerate_config": "single_gpu multi_gpu fsdp1 fsdp2 zero1 zero2 zero3 multi_node cpu",
    "report_to": "tensorboard wandb trackio mlflow all none",
    "lora_target_modules": "all-linear",
    "reward_funcs": "accuracy_reward reasoning_accuracy_reward think_format_reward get_soft_overlong_punishment",
    "attn_implementation": "sdpa eager flash_attention_2 flex_attention",
}
SWITCH = ("true", "false")


class Option(NamedTuple):
    """A flag as shells see it.

    Args:
        name: without dashes.
        help: one line.
        values: words that may follow it.
        paths: "file", "folder" or "": what else may follow it.
        is_switch: may stand alone, and as --no_NAME.
        takes_several: any number of words may follow it.
    """

    name: str
    help: str
    values: tuple[str, ...]
    paths: str
    is_switch: bool
    takes_several: bool


def run(words: list[str]) -> int:
    """Print the script of a shell.

    Args:
        words: behind `posttrain completion`: the shell.

    Raises:
        UserError: no shell that there is a script for is named.
    """
    if words and words[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if len(words) != 1 or words[0] not in SHELLS:
        given = suggestion(words[0], SHELLS) if len(words) == 1 else ""
        raise UserError(f"name a shell: posttrain completion {'|'.join(SHELLS)}{given}")
    print(SHELLS[words[0]](commands(), {name: options_of(name) for name in commands()}), end="")
    return 0


def commands() -> dict[str, str]:
    """What may stand first, and what it does."""
    return {name: cls.summary for name, cls in METHODS.items()} | COMMANDS


def options_of(command: str) -> list[Option]:
    """The flags of a method or command, but for those that are refused.

    Args:
        command: one of `commands()`.
    """
    if command == "inspect":
        from posttrain.inspection.options import InspectFlags

        rows = {name: field for name, field in flags_of(SFTFlags).items() if name not in ("learning_rate", "loss_type")}
        fields = flags_of(InspectFlags) | flags_of(DataFlags) | flags_of(ModelFlags) | flags_of(LengthFlags) | rows
    elif command == "check":
        from posttrain.experiment.gates.command import CheckFlags

        fields = flags_of(CheckFlags)
    elif command == "report":
        from posttrain.experiment.report.options import ReportFlags

        fields = flags_of(ReportFlags)
    elif command in (*METHODS, "plan"):
        from posttrain.planning.options import PlanFlags

        fields = flags_of(LaunchOptions) | flags_of(FileOption) | (flags_of(PlanFlags) if command == "plan" else {})
        for cls in METHODS.values() if command == "plan" else [METHODS[command]]:
            fields = {name: field for name, field in flags_of(cls).items() if name not in refused(cls)} | fields
    else:
        return []
    options = []
    for name, field in sorted(fields.items()):
        values = (*KNOWN_VALUES.get(name, "").split(), *field.metadata["choices"])
        paths = "folder" if name in FOLDERS else "file" if name in FILES | MAYBE_PATHS else ""
        is_switch, several = is_bool(field), takes_list(field) and name != "datasets"
        options.append(Option(name, field.metadata["help"], values or SWITCH * is_switch, paths, is_switch, several))
    return options


Options = Mapping[str, list[Option]]


def _cases(options: Options, test: Callable[[Option], str], line: Callable[[str], str]) -> str:
    """Branches of a `case` over COMMAND--FLAG: for flags of which `test` says something, what `line` makes of it."""
    found: dict[str, list[str]] = {}
    names = sorted({option.name for group in options.values() for option in group})
    for name in names:
        told = {command: test(one) for command, group in options.items() for one in group if one.name == name}
        for text in sorted({text for text in told.values() if text}):
            same = len(set(told.values())) == 1
            patterns = [f"*--{name}"] if same else [f"{command}--{name}" for command in told if told[command] == text]
            found.setdefault(text, []).extend(patterns)
    return "\n".join(f"        {'|'.join(patterns)}) {line(text)} ;;" for text, patterns in found.items())


def _flag_words(options: Options, no: bool) -> str:
    """Branches of a `case` over commands that set `flags`, or `nos` to the forms that switch off."""
    lines = []
    for command, group in options.items():
        words = " ".join(f"--no_{one.name}" if no else f"--{one.name}" for one in group if one.is_switch or not no)
        if group:
            lines.append(f"        {command}) {'nos' if no else 'flags'}='{words}' ;;")
    return "\n".join(lines)


def bash_script(summaries: Mapping[str, str], options: Options) -> str:
    """The script for bash, from version 3.2 on.

    Args:
        summaries: of methods and commands.
        options: of each of them.
    """
    return f"""# Completion of posttrain in bash: eval "$(posttrain completion bash)"
_posttrain() {{
    local cur="${{COMP_WORDS[COMP_CWORD]}}" command="${{COMP_WORDS[1]}}" flag="" given=0 i word
    local values="" kind="" flags="--help" nos="" several="" switch="" IFS=$' \\t\\n'
    COMPREPLY=()
    [[ $cur == "=" ]] && cur=""
    if (( COMP_CWORD == 1 )); then
        COMPREPLY=( $(compgen -W "{" ".join(summaries)} --help --version" -- "$cur") )
        return
    fi
    for (( i = COMP_CWORD - 1; i > 1; i-- )); do
        word="${{COMP_WORDS[i]}}"
        if [[ $word == --* ]]; then flag="$word"; break; fi
        [[ $word == "=" ]] || given=$(( given + 1 ))
    done
    case "$command" in
{_flag_words(options, no=False)}
        completion) (( given )) || COMPREPLY=( $(compgen -W "bash zsh fish" -- "$cur") ); return ;;
        *) return ;;
    esac
    [[ $cur == --no* ]] && case "$command" in
{_flag_words(options, no=True)}
    esac
    case "$command$flag" in
{_cases(options, lambda one: " ".join(one.values), lambda text: f"values='{text}'")}
    esac
    case "$command$flag" in
{_cases(options, lambda one: one.paths, lambda text: f"kind={text}")}
        inspect|check) (( given )) || kind=file ;;
        plan) (( given )) || values='{" ".join(METHODS)}' ;;
    esac
    case "$command$flag" in
{_cases(options, lambda one: "several" * one.takes_several, lambda text: f"{text}=1")}
    esac
    case "$command$flag" in
{_cases(options, lambda one: "switch" * one.is_switch, lambda text: f"{text}=1")}
        *--no_*|"$command") switch=1 ;;
    esac
    if (( given )) && [[ -z $several ]]; then values="" kind="" switch=1; fi
    if [[ $cur == -* || -n $switch || ( -n $several && $given -gt 0 ) ]]; then values="$values $flags $nos"; fi
    COMPREPLY=( $(compgen -W "$values" -- "$cur") )
    if [[ -n $kind && $cur != -* ]]; then
        IFS=$'\\n'
        [[ $kind == folder ]] && kind=-d || kind=-f
        COMPREPLY+=( $(compgen $kind -- "$cur") )
        type compopt >/dev/null 2>&1 && compopt -o filenames 2>/dev/null
    fi
    return 0
}}
complete -F _posttrain posttrain
"""


def zsh_script(summaries: Mapping[str, str], options: Options) -> str:
    """The script for zsh.

    Args:
        summaries: of methods and commands.
        options: of each of them.
    """
    listed = " ".join(_quoted(f"{name}:{summary}") for name, summary in summaries.items())
    branches = []
    for command, group in options.items():
        words = [_quoted(f"--{one.name}:{_short(one.help)}") for one in group]
        nos = [_quoted(f"--no_{one.name}:no {one.name}") for one in group if one.is_switch]
        branches.append(f"        {command}) flags=( {' '.join(words)} ); nos=( {' '.join(nos)} ) ;;")
    lines = "\n".join(branches)
    return f"""#compdef posttrain
# Completion of posttrain in zsh: eval "$(posttrain completion zsh)", after compinit
_posttrain() {{
    local -a flags nos values
    local command=$words[2] flag="" kind="" several="" switch="" i
    local -i given=0
    if (( CURRENT == 2 )); then
        flags=( {listed} )
        _describe -t commands command flags
        return
    fi
    for (( i = CURRENT - 1; i > 2; i-- )); do
        if [[ $words[i] == --* ]]; then flag=$words[i]; break; fi
        (( given += 1 ))
    done
    case $command in
{lines}
    esac
    if [[ $command == completion ]]; then (( given )) || compadd bash zsh fish; return; fi
    case $command$flag in
{_cases(options, lambda one: " ".join(one.values), lambda text: f"values=( {text} )")}
    esac
    case $command$flag in
{_cases(options, lambda one: one.paths, lambda text: f"kind={text}")}
        inspect|check) (( given )) || kind=file ;;
        plan) (( given )) || values=( {" ".join(METHODS)} ) ;;
    esac
    case $command$flag in
{_cases(options, lambda one: "several" * one.takes_several, lambda text: f"{text}=1")}
    esac
    case $command$flag in
{_cases(options, lambda one: "switch" * one.is_switch, lambda text: f"{text}=1")}
        *--no_*|$command) switch=1 ;;
    esac
    if (( given )) && [[ -z $several ]]; then values=() kind="" switch=1; fi
    if [[ $PREFIX != -* ]]; then
        (( $#values )) && compadd -a values
        [[ $kind == file ]] && _files
        [[ $kind == folder ]] && _files -/
    fi
    if [[ $PREFIX == -* || -n $switch || ( -n $several && $given -gt 0 ) ]]; then
        [[ $PREFIX == --no* ]] && flags+=( $nos )
        _describe -t flags flag flags
    fi
}}
if [[ $funcstack[1] == _posttrain ]]; then _posttrain "$@"; else compdef _posttrain posttrain; fi
"""


def fish_script(summaries: Mapping[str, str], options: Options) -> str:
    """The script for fish.

    Args:
        summaries: of methods and commands.
        options: of each of them.
    """
    lines = [
        "# Completion of posttrain in fish: posttrain completion fish > ~/.config/fish/completions/posttrain.fish",
        "function __posttrain_is\n    contains -- (commandline -opc)[2] $argv\nend",
        "complete -c posttrain -f",
        "complete -c posttrain -n 'test (count (commandline -opc)) = 1' -l help -d 'What there is'",
        "complete -c posttrain -n 'test (count (commandline -opc)) = 1' -l version -d 'The version'",
        "complete -c posttrain -n '__posttrain_is completion' -a 'bash zsh fish'",
        "complete -c posttrain -n '__posttrain_is inspect' -F",
        "complete -c posttrain -n '__posttrain_is check' -F",
        f"complete -c posttrain -n '__posttrain_is plan' -a '{' '.join(METHODS)}'",
    ]
    for name, summary in summaries.items():
        here = "test (count (commandline -opc)) = 1"
        lines.append(f"complete -c posttrain -n '{here}' -a {name} -d {_fish_quoted(summary)}")
    takers: dict[Option, list[str]] = {}
    for command, group in options.items():
        for option in group:
            takers.setdefault(option, []).append(command)
    for option, users in takers.items():
        start = f"complete -c posttrain -n '__posttrain_is {' '.join(users)}'"
        values = f" -a '{' '.join(option.values)}'" if option.values else ""
        wants = {"file": " -r -F", "folder": " -x -a '(__fish_complete_directories)'"}.get(option.paths, " -x")
        follows = "" if option.is_switch else f"{wants}{values}"
        lines.append(f"{start} -l {option.name}{follows} -d {_fish_quoted(_short(option.help))}")
        if option.is_switch:
            lines.append(f"{start} -l no_{option.name} -d 'no {option.name}'")
    return "\n".join(lines) + "\n"


def _short(text: str) -> str:
    return textwrap.shorten(text, 70, placeholder=" …")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SHELLS = {"bash": bash_script, "zsh": zsh_script, "fish": fish_script}
