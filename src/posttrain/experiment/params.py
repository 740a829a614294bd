"""The parameters of a stage: its section of params.yaml, and flags after it."""

from collections.abc import Sequence

from posttrain.config import CommonConfig, LaunchOptions, load_yaml, parse_command_line, suggestion
from posttrain.errors import UserError


def read_section(path: str, name: str) -> dict[str, object]:
    """One section of a params file.

    Args:
        path: The file.
        name: The section's key.

    Raises:
        UserError: The file cannot be read, or has no such section.
    """
    content = load_yaml(path)
    if name not in content:
        raise UserError(f"{path}: there is no section {name}{suggestion(name, map(str, content))}")
    if not isinstance(content[name], dict):
        raise UserError(f"{path}: {name} holds no keys; wanted lines of the form `key: value` under it")
    return content[name]


def stage_config(stage: str, argv: Sequence[str]) -> tuple[CommonConfig, LaunchOptions]:
    """What a stage that trains is told.

    Args:
        stage: The method, and the section of the params file.
        argv: `--params FILE` (params.yaml where it is missing), and flags that win over the file's.

    Returns:
        The config, and how to launch it.

    Raises:
        UserError: The file, a key or a flag is wrong.
    """
    words = list(argv)
    path = "params.yaml"
    if "--params" in words:
        at = words.index("--params")
        if at + 1 == len(words):
            raise UserError("--params: a value is missing (the file of parameters, such as params.yaml)")
        path = words[at + 1]
        del words[at : at + 2]
    section = read_section(path, stage)
    if section.get("hub_token") is not None:
        raise UserError(
            f"{path}: {stage}.hub_token: DVC copies parameters to dvc.lock, which is committed; take the token out, "
            "and set HF_TOKEN or run `hf auth login`",
            "troubleshooting.md#hub",
        )
    return parse_command_line(stage, words, section=section, where=f"{path}: {stage}")
