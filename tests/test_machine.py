"""What the machine has."""

from types import SimpleNamespace

import pytest
import torch

from posttrain.config import SFTConfig
from posttrain.machine import has_bf16
from posttrain.quantisation import quantised_dtype


@pytest.mark.parametrize("has_units", [True, False])
def test_bfloat16_that_a_gpu_only_imitates_does_not_count(has_units: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return has_units or including_emulation

    assert has_bf16(SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: True, is_bf16_supported=supported))) == (
        has_units
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert quantised_dtype(SFTConfig()) == (torch.bfloat16 if has_units else None)


def test_no_gpu_no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not has_bf16(torch)
