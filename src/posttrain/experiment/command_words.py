"""The command lines of commands that work on experiments: argparse's rules, and this project's messages."""

import argparse
from typing import NoReturn

from posttrain.config.fields import suggestion
from posttrain.errors import UserError


class Words(argparse.ArgumentParser):
    """argparse, which raises a UserError where it would print its own message and leave.

    Args:
        usage: the line that help and messages show.
        description: what the command does.
    """

    def __init__(self, usage: str, description: str):
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(usage=usage, description=description, formatter_class=layout, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        flags = [word for action in self._actions for word in action.option_strings if word.startswith("--")]
        unknown = [word for word in message.split() if word.startswith("--") and word.partition("=")[0] not in flags]
        near = suggestion(unknown[0].partition("=")[0], flags) if unknown else ""
        raise UserError(f"{message}{near}; usage: {self.usage}")
