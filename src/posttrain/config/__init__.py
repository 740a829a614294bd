"""Flags as dataclasses, read strictly from the command line and from YAML files.

Nothing here imports torch or transformers: a wrong flag is reported at once.
"""

from posttrain.config.common import CommonConfig, DatasetSource
from posttrain.config.effects import remark
from posttrain.config.fields import suggestion
from posttrain.config.help_page import COMMANDS, help_page
from posttrain.config.methods import METHODS, DPOConfig, RewardConfig, SFTConfig
from posttrain.config.parse import LaunchOptions, from_mapping, parse_command_line
from posttrain.config.paths import check_paths
from posttrain.config.policy import GRPOConfig, PolicyConfig, RLOOConfig
from posttrain.config.yaml_files import load_yaml

__all__ = [
    "COMMANDS",
    "METHODS",
    "CommonConfig",
    "DPOConfig",
    "DatasetSource",
    "GRPOConfig",
    "LaunchOptions",
    "PolicyConfig",
    "RLOOConfig",
    "RewardConfig",
    "SFTConfig",
    "check_paths",
    "from_mapping",
    "help_page",
    "load_yaml",
    "parse_command_line",
    "remark",
    "suggestion",
]
