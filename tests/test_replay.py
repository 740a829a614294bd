"""A function that is run again as a list of operators, against the function itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from posttrain.replay import Replay, live

Tensors = tuple[torch.Tensor, ...]
WEIGHT = torch.randn(8, 8)


def chain(x: torch.Tensor, y: torch.Tensor) -> Tensors:
    """Views, products, results in place, several results of one operator, and more of them than are wanted at once."""
    for _ in range(5):
        x = torch.cat((x[:, 4:].neg(), x[:, :4]), -1) * torch.arange(8.0).cos()
        x = (x @ WEIGHT.t()).view(-1, 2, 4).transpose(1, 2).reshape(-1, 8)
        x /= x.norm(dim=-1, keepdim=True)
    top, places = x.max(-1)
    zeros = torch.zeros(len(x))
    zeros.add_(y)
    return x.cumsum(-1), top + zeros, places


def inputs(rows: int = 3) -> Tensors:
    return torch.randn(rows, 8), torch.randn(rows)


def assert_same_bits(ours: Tensors, theirs: Tensors) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


@torch.no_grad()
def test_it_gives_the_same_bits() -> None:
    replay = Replay(chain)
    for rows in (3, 3, 3, 2, 2, 3):
        given = inputs(rows)
        assert_same_bits(replay(*given), chain(*given))
    assert replay.refused is None
    kept = replay(*inputs())
    copies = tuple(one.clone() for one in kept)
    replay(*inputs())
    assert_same_bits(kept, copies)  # what has come out stays as it is


@torch.no_grad()
def test_python_is_left_out_and_what_does_not_change_is_computed_once() -> None:
    calls = []

    def function(x: torch.Tensor) -> Tensors:
        calls.append(1)
        return (x * WEIGHT.exp().sum() + torch.ones(8).sum(),)

    replay = Replay(function)
    for _ in range(3):
        x = torch.randn(2, 8)
        assert_same_bits(replay(x), (x * WEIGHT.exp().sum() + 8,))
    assert len(calls) == 1 and len(replay._calls) == 2  # the product and the sum


@torch.no_grad()
def test_it_is_recorded_after_calls_with_the_same_shapes() -> None:
    calls = []

    def function(x: torch.Tensor) -> Tensors:
        calls.append(len(x))
        return (x + 1,)

    replay = Replay(function, after=2)
    for rows in (3, 3, 2, 2, 2, 2, 2, 3):
        x = torch.randn(rows)
        assert_same_bits(replay(x), (x + 1,))
    assert calls == [3, 3, 2, 2, 2, 3]  # the fifth is recorded, and run again twice


@torch.no_grad()
def test_what_the_function_changes_is_changed_again() -> None:
    total = torch.zeros(2)

    def function(x: torch.Tensor) -> Tensors:
        total.add_(x)
        return (total * 2,)

    replay = Replay(function)
    for expected in (1, 2, 3):
        assert replay(torch.ones(2))[0].tolist() == [2 * expected] * 2
    assert total.tolist() == [3, 3]


@torch.no_grad()
def test_a_live_function_is_called_each_time() -> None:
    steps = iter(range(1, 10))

    @live
    def grow(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x] * next(steps)).sum(0).t()

    replay = Replay(lambda x: (grow(x + 1) * 2,))
    for step in (1, 2, 3):
        x = torch.ones(2, 4)
        assert_same_bits(replay(x), ((x + 1).t() * 2 * step,))
    assert grow(x).sum() == 8 * 4  # outside of a recording too


def ask(x: torch.Tensor) -> torch.Tensor:
    return x * 2 if x.sum() > 0 else x - 1


REFUSED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "aten._local_scalar_dense.default": ask,
    "aten.index.Tensor": lambda x: x[x > 0].sum(),
    "aten.bernoulli_.float": lambda x: x * torch.empty_like(x).bernoulli_(1.0),
}


@torch.no_grad()
@pytest.mark.parametrize("operator", REFUSED)
def test_what_depends_on_numbers_is_run_as_it_is(operator: str) -> None:
    replay = Replay(lambda x: (REFUSED[operator](x),))
    for sign in (1.0, -1.0, 1.0):
        x = torch.full((4,), sign)
        assert_same_bits(replay(x), (REFUSED[operator](x),))
    assert replay.refused == operator


@torch.no_grad()
def test_a_recording_that_fails_leaves_nothing_behind() -> None:
    failing = [True]

    def function(x: torch.Tensor) -> Tensors:
        if failing:
            raise OSError("here")
        return (x + 1,)

    replay = Replay(function)
    with pytest.raises(OSError, match="here"):
        replay(torch.ones(2))
    failing.clear()
    assert replay(torch.ones(2))[0].tolist() == replay(torch.ones(2))[0].tolist() == [2, 2]
