"""Norms with a backward pass of their own against those of transformers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from posttrain.norms import _RMSNorm, exchange_norms
from posttrain.scoring import Scorer


def norm(of: type[nn.Module] = Qwen3RMSNorm) -> nn.Module:
    torch.manual_seed(0)
    module = of(24, 1e-5)
    nn.init.normal_(module.weight)
    return module


@pytest.mark.parametrize("trained", [(True, True), (True, False), (False, True)])
def test_gradients_are_those_of_the_formula(trained: tuple[bool, bool]) -> None:
    """To the rounding of float64, of rows in any order in memory."""
    torch.manual_seed(1)
    x = torch.randn(3, 24, 7, dtype=torch.float64).transpose(1, 2).requires_grad_(trained[0])
    weight = torch.randn(24, dtype=torch.float64, requires_grad=trained[1])
    parts = [one for one in (x, weight) if one.requires_grad]
    expected = weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 0.1))
    actual = _RMSNorm.apply(x, weight, 0.1)
    torch.testing.assert_close(actual, expected)
    upstream = torch.randn_like(expected)
    gradients = [torch.autograd.grad(one, parts, upstream) for one in (actual, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("autocast", [False, True])
def test_an_exchanged_norm_is_the_same_module(autocast: bool) -> None:
    """Autocast that is still on in the backward pass rounds nothing."""
    plain, other = norm(), norm()
    assert exchange_norms(other) == exchange_norms(other) == 1
    assert isinstance(other, Qwen3RMSNorm) and type(other).__name__ == "Qwen3RMSNorm"
    assert list(other.state_dict()) == list(plain.state_dict()) and repr(other) == repr(plain)
    x, gradients = torch.randn(2, 5, 24), []
    for module in (plain, copy.deepcopy(other)):
        inputs = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            (module(inputs) * torch.arange(24.0)).sum().backward()
        gradients.append((inputs.grad, module.weight.grad))
    assert torch.equal(plain(x), other(x))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-4)


def test_other_types_go_the_way_of_the_model() -> None:
    plain, other = norm().bfloat16(), norm()
    exchange_norms(other)
    x = torch.randn(2, 5, 24).bfloat16()
    assert torch.equal(other.bfloat16()(x), plain(x))


class WithBiasRMSNorm(LlamaRMSNorm):
    """Looks like one, and is none."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states) + 0.5


@pytest.mark.parametrize("module", [norm(GemmaRMSNorm), norm(WithBiasRMSNorm), nn.LayerNorm(24), norm().bfloat16()])
def test_what_the_formula_does_not_give_stays(module: nn.Module) -> None:
    before = type(module)
    assert exchange_norms(module) == 0 and type(module) is before


def test_a_scorer_exchanges_those_of_its_model() -> None:
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4))
    keys = list(model.state_dict())
    Scorer(model)
    assert exchange_norms(model) == 5 and list(model.state_dict()) == keys
