"""Base weights in 4 or 8 bits through bitsandbytes, for adapters to be trained on (QLoRA, arXiv 2305.14314)."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import torch

from posttrain.errors import UserError, install
from posttrain.machine import has_bf16

if TYPE_CHECKING:
    from posttrain.config import CommonConfig


def is_quantised(config: CommonConfig) -> bool:
    """Whether the base weights are to be loaded in 4 or 8 bits."""
    return config.load_in_4bit or config.load_in_8bit


def check_quantisation(config: CommonConfig) -> None:
    """Look for what quantised weights need.

    Raises:
        UserError: there is no GPU, or bitsandbytes is not installed.
    """
    if not is_quantised(config):
        return
    name = "--load_in_4bit" if config.load_in_4bit else "--load_in_8bit"
    if config.use_cpu or not has_gpu():
        raise UserError(
            f"{name} needs a GPU, and this run has none; leave it out: --use_peft alone trains adapters on plain "
            "weights, --dtype bfloat16 halves their memory, and a smaller model does for a first test",
            "troubleshooting.md#model-loading",
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"{name} needs the package bitsandbytes, which is not installed: {install('quantization')}",
            "troubleshooting.md#model-loading",
        )


def has_gpu() -> bool:
    """Whether there is a device that bitsandbytes is used on here."""
    return torch.cuda.is_available()


def quantised_dtype(config: CommonConfig) -> torch.dtype | None:
    """What a quantised model computes in, and what its other weights are loaded in: bfloat16 where the GPU has it and
    `--dtype` says nothing else; None: as `--dtype` says."""
    if "dtype" in config.explicit or not has_bf16(torch):
        return None
    return torch.bfloat16


def quantisation_options(config: CommonConfig, dtype: torch.dtype | str) -> dict[str, Any]:
    """The keyword arguments of from_pretrained for quantised weights.

    Args:
        config: with load_in_4bit or load_in_8bit.
        dtype: of computation; "auto" leaves it to bitsandbytes.
    """
    from transformers import BitsAndBytesConfig

    settings: dict[str, Any] = {"load_in_8bit": True}
    if config.load_in_4bit:
        settings = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": config.bnb_4bit_quant_type,
            "bnb_4bit_use_double_quant": config.use_bnb_nested_quant,
            "bnb_4bit_compute_dtype": None if dtype == "auto" else dtype,
            "bnb_4bit_quant_storage": config.bnb_4bit_quant_storage,
        }
    # Quantised weights cannot be moved later: each process loads them onto its own device.
    here = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    return {"quantization_config": BitsAndBytesConfig(**settings), "device_map": {"": here}}
