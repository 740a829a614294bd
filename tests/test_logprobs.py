"""Chunked statistics of targets against the plain ones, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import posttrain.logprobs
from posttrain.compiled_head import chunk_gradient, chunk_statistics, compiled_head_statistics
from posttrain.logits_chunk import chunk_statistics as statistics_of_chunk
from posttrain.logprobs import TargetHead, head_statistics, statistics_from_logits


def plain(hidden: torch.Tensor, head: nn.Linear, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    logits = head(hidden).float() / temperature
    p = logits.softmax(-1)
    rows = torch.arange(len(targets))
    return torch.stack(
        [
            p[rows, targets].log(),
            -(p * p.log()).sum(-1),
            (p.argmax(-1) == targets).float(),
            logits.mean(-1),
            (p * p).sum(-1).log(),
        ],
        dim=1,
    )


def case(bias: bool) -> tuple[torch.Tensor, nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    head = nn.Linear(16, 50, bias=bias)
    hidden = torch.randn(23, 16, requires_grad=True)
    return hidden, head, torch.randint(0, 50, (23,))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("rows_at_once", [1, 7, 23, 100])
@pytest.mark.parametrize("kept", [True, False])
def test_chunks_change_nothing(
    bias: bool, temperature: float, rows_at_once: int, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few rows at once or all, their probabilities kept for the backward pass or computed again."""
    monkeypatch.setattr(posttrain.logprobs, "CHUNK_ELEMENTS", {"cpu": (50 * rows_at_once, 50 * (rows_at_once + 3))})
    monkeypatch.setattr(posttrain.logprobs, "LEAST_TARGETS", 1)
    if not kept:
        monkeypatch.setattr(posttrain.logprobs, "KEPT_ELEMENTS", 0)
    hidden, head, targets = case(bias)
    weights = torch.randn(23, 2)
    parameters = [hidden, *head.parameters()]
    expected = plain(hidden, head, targets, temperature)
    (expected[:, :2] * weights).sum().backward()
    gradients = [p.grad.clone() for p in parameters]  # type: ignore[union-attr]
    for p in parameters:
        p.grad = None
    actual = head_statistics(hidden, head.weight, head.bias, targets, temperature, with_entropy_gradient=True)
    torch.testing.assert_close(actual, expected)
    (actual[:, :2] * weights).sum().backward()
    for p, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient)


@pytest.mark.parametrize("backend", [None, "eager"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_the_compiled_head_says_the_same(
    backend: str | None, bias: bool, temperature: float, with_entropy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its functions as they are, and traced by torch.compile."""
    monkeypatch.setattr(posttrain.logprobs, "CHUNK_ELEMENTS", {"cpu": (50 * 5, 50 * 7)})
    monkeypatch.setattr(posttrain.logprobs, "LEAST_TARGETS", 1)
    if backend is None:
        monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    torch._dynamo.reset()
    head_of = compiled_head_statistics(backend or "", None)
    hidden, head, targets = case(bias)
    weights = torch.randn(23, 2) * torch.tensor([1.0, float(with_entropy)])
    parameters = [hidden, *head.parameters()]
    expected = head_statistics(hidden, head.weight, head.bias, targets, temperature, with_entropy)
    gradients = torch.autograd.grad((expected[:, :2] * weights).sum(), parameters)
    actual = head_of(hidden, head.weight, head.bias, targets, temperature, with_entropy)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    again = torch.autograd.grad((actual[:, :2] * weights).sum(), parameters)
    for one, other in zip(again, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_compiled_head_holds_a_chunk_and_half_precision() -> None:
    """In the type of the head, with logits of -inf, and for no targets at all."""
    hidden, weight = torch.randn(9, 16).bfloat16().requires_grad_(), torch.randn(50, 16).bfloat16().requires_grad_()
    targets = torch.arange(9)
    logits = torch.nn.functional.linear(hidden, weight)
    table = chunk_statistics(logits, targets, 1.0)
    torch.testing.assert_close(table[:, :5], statistics_from_logits(logits, targets))
    gradient = chunk_gradient(logits, targets, table[:, 5], table[:, 1], torch.ones(9, 2), 1.0, True)
    assert gradient.dtype == torch.bfloat16
    masked = logits.detach().float().masked_fill(torch.arange(50) > 20, -torch.inf)
    table = chunk_statistics(masked, targets, 1.0)
    gradient = chunk_gradient(masked, targets, table[:, 5], table[:, 1], torch.ones(9, 2), 1.0, True)
    assert table[:, [0, 1, 4]].isfinite().all() and gradient.isfinite().all() and (gradient[:, 21:] == 0).all()
    assert compiled_head_statistics("eager", None)(hidden[:0], weight, None, targets[:0]).shape == (0, 5)


def test_entropy_has_no_gradient_unless_asked_for() -> None:
    hidden, head, targets = case(bias=False)
    head_statistics(hidden, head.weight, None, targets)[:, 1].sum().backward()
    assert hidden.grad is not None and hidden.grad.abs().max() == 0


def test_statistics_from_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posttrain.logprobs, "CHUNK_ELEMENTS", {"cpu": (120, 120)})
    hidden, head, targets = case(bias=True)
    actual = statistics_from_logits(head(hidden), targets, temperature=0.7)
    torch.testing.assert_close(actual, plain(hidden, head, targets, 0.7))


def test_in_bfloat16_and_under_autocast() -> None:
    """Within the rounding of the inputs, float32 results; gradients in the types of the parameters."""
    hidden, head, targets = case(bias=False)
    exact = plain(hidden, head, targets, 1.0)[:, 0]
    with torch.autocast("cpu", torch.bfloat16):
        cast = head_statistics(hidden, head.weight, None, targets)
    assert cast.dtype == torch.float32
    torch.testing.assert_close(cast[:, 0], exact, atol=3e-2, rtol=1e-2)
    cast[:, 0].sum().backward()
    assert head.weight.grad is not None and head.weight.grad.dtype == torch.float32
    half_head = head.to(torch.bfloat16)
    half = head_statistics(hidden.detach().bfloat16(), half_head.weight, None, targets)
    torch.testing.assert_close(half[:, 0], exact, atol=3e-2, rtol=1e-2)
    half_head.zero_grad()
    half[:, 0].sum().backward()
    assert half_head.weight.grad is not None and half_head.weight.grad.dtype == torch.bfloat16


def test_a_target_head_is_the_linear_layer_that_it_was() -> None:
    hidden, head, targets = case(bias=True)
    before = head(hidden)
    adopted = TargetHead.adopt(head)
    assert adopted is head and isinstance(head, nn.Linear)
    assert torch.equal(head(hidden), before)
    index = torch.tensor([3, 0, 22])
    with head.targeting(index, targets[index]):
        inside = head(hidden[None])
    torch.testing.assert_close(inside[0], plain(hidden[index], head, targets[index], 1.0))
    assert torch.equal(head(hidden), before)

    class Other(nn.Linear):
        pass

    assert TargetHead.adopt(Other(2, 2)) is None


def test_of_several_largest_logits_the_first_is_the_most_probable() -> None:
    """As argmax has it, where half precision makes logits equal."""
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0], [1.0, 3.0, 3.0, 0.0], [5.0, 3.0, 3.0, 0.0], [5.0, 3.0, 3.0, 0.0]])
    targets = torch.tensor([1, 2, 0, 1])
    table = statistics_of_chunk(logits.clone(), targets, torch.empty(4, 4))
    assert table[:, 2].tolist() == [1, 0, 1, 0] == (logits.argmax(-1) == targets).float().tolist()


def test_gradients_in_half_precision_are_rounded_once() -> None:
    """Those of a chunk go through pieces in float32 to the type of the products."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(150, 16).bfloat16().requires_grad_(), torch.randn(4096, 16).bfloat16()
    targets, upstream = torch.randint(0, 4096, (150,)), torch.randn(150)
    (head_statistics(hidden, weight, None, targets)[:, 0] * upstream).sum().backward()
    p = (hidden.detach() @ weight.T).float().softmax(-1)
    logits = (nn.functional.one_hot(targets, 4096) - p) * upstream[:, None]
    torch.testing.assert_close(hidden.grad, logits.bfloat16() @ weight, rtol=1e-2, atol=1e-3)
