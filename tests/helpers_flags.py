"""Command lines → configs and messages."""

import pytest

from posttrain.config import CommonConfig, parse_command_line
from posttrain.errors import UserError

NEEDED = ["--model_name_or_path", "org/model", "--dataset_name", "org/rows"]


def parse(method: str, *words: str) -> CommonConfig:
    return parse_command_line(method, [*NEEDED, *words])[0]


def message(method: str, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(method, *words)
    return str(caught.value)
