"""Activations that wait elsewhere, on a device of this test's own: its copies happen as late as they may, and ask then
whether what they copy is still there."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import make
from test_packing_equality import Sequences, assert_same, score, shared, trees  # noqa: F401 (trees is a fixture)

from posttrain.models import checkpoint_activations
from posttrain.offloading import Offloading
from posttrain.scoring import Scorer


class LateCopies:
    """A stream that does nothing until it has to: a copy that nobody waits for never happens. It holds neither end."""

    def __init__(self) -> None:
        self.queue: list[tuple[weakref.ref[torch.Tensor], weakref.ref[torch.Tensor]]] = []
        self.done = 0
        self.on_host: list[weakref.ref[torch.Tensor]] = []

    def takes(self, tensor: torch.Tensor) -> bool:
        return True

    def host(self, size: int) -> torch.Tensor:
        memory = torch.full((size,), 255, dtype=torch.uint8)  # as float32: not a number
        self.on_host.append(weakref.ref(memory))
        return memory

    def device(self, size: int, device: torch.device) -> torch.Tensor:
        return torch.full((size,), 255, dtype=torch.uint8)

    def start(self, target: torch.Tensor, source: torch.Tensor) -> int:
        self.queue.append((weakref.ref(target), weakref.ref(source)))
        return len(self.queue)

    def wait(self, copy: int) -> None:
        for target, source in self.queue[self.done : copy]:
            to, of = target(), source()
            if to is None and target in self.on_host:
                continue  # nobody wants it any more, and page-locked memory is not given away under a copy
            assert to is not None and of is not None, "an end of a copy was given back before the copy"
            to.copy_(of)
        self.done = max(self.done, copy)


def gradients(run: Callable[[], torch.Tensor], leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    return list(torch.autograd.grad(run(), leaves))


def test_the_same_bits_come_back_through_views_copies_and_types() -> None:
    torch.manual_seed(0)
    x, y = (torch.randn(8, 16, requires_grad=True) for _ in range(2))

    def run() -> torch.Tensor:
        a = x.sin()
        left, right = (a @ y.T).exp().split(4, dim=1)  # views of one block
        b = left.T * right.T.expand(4, 8)  # other strides
        return (b.double() ** 2).sum() + (left.bfloat16() * right.bfloat16()).sum() + (a * a).sum()

    expected = gradients(run, [x, y])
    offloading = Offloading(LateCopies(), smallest=0)
    for _ in range(2):  # the context is entered for every pass
        with offloading:
            loss = run()
        for actual, one in zip(torch.autograd.grad(loss, [x, y]), expected, strict=True):
            assert torch.equal(actual, one)


def test_a_block_is_copied_once_and_weights_and_small_ones_stay() -> None:
    weight = torch.nn.Parameter(torch.randn(64, 64))
    states = torch.randn(32, 64, requires_grad=True)
    copies = LateCopies()
    offloading = Offloading(copies, smallest=1024)
    with offloading:
        hidden = states * 2.0
        loss = sum((hidden @ weight.T).tanh().mean() for _ in range(3)) + (hidden[0, :4].exp()).sum()
    # hidden once, and three results of tanh; neither the weight nor 4 numbers.
    assert offloading.moved == 4 * hidden.untyped_storage().nbytes()
    assert len(copies.queue) == 4
    loss.backward()
    # Two had not been given back, and are not fetched.
    assert len(copies.queue) == 4 + 2


def test_what_autocast_makes_of_a_weight_stays_as_well() -> None:
    layer, states = torch.nn.Linear(64, 64, bias=False), torch.randn(32, 64, requires_grad=True)
    offloading = Offloading(LateCopies(), smallest=0)
    with offloading, torch.autocast("cpu", torch.bfloat16):
        loss = layer(states).sum()
    assert offloading.moved == 2 * states.numel()  # in bfloat16, for the gradient of the weight
    loss.backward()


def test_blocks_that_take_the_place_of_others_are_not_taken_for_them() -> None:
    """The allocator gives a block's memory to the next one of its size, under the same number."""
    x = torch.randn(4096, requires_grad=True)

    def run() -> torch.Tensor:
        z = x
        for _ in range(12):
            z = z.sin().exp().tanh()
        return z.sum()

    expected = gradients(run, [x])[0]
    with Offloading(LateCopies(), smallest=0):
        loss = run()
    assert torch.equal(torch.autograd.grad(loss, [x])[0], expected)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_model_is_trained_to_the_same_gradients(trees: Sequences, checkpointed: bool) -> None:  # noqa: F811
    model: Any = make("qwen3")
    scorer = Scorer(model)
    model.train()
    checkpoint_activations(model, on=checkpointed)
    table, expected = score(model, scorer, [shared(trees)])
    model.zero_grad()
    offloading = Offloading(LateCopies(), smallest=0)
    with offloading:
        actual = torch.stack(scorer(model, shared(trees), with_entropy_gradient=True)[:5], dim=1)
    weights = torch.linspace(0.5, 1.5, actual.shape[0])
    (actual[:, 0] * weights + 0.3 * actual[:, 1] * weights).sum().backward()
    assert torch.equal(actual, table)
    assert_same([p.grad for p in model.parameters() if p.grad is not None], expected)
    assert offloading.moved > 0


def test_what_is_fetched_and_not_needed_is_waited_for() -> None:
    x = torch.randn(4096, requires_grad=True)
    copies = LateCopies()
    offloading = Offloading(copies, smallest=0)
    with offloading:
        blocks = [x.exp() for _ in range(6)]
    blocks[3].sum().backward()  # fetches the two before it
    started = len(copies.queue)
    assert copies.done < started
    del blocks
    with offloading:
        pass
    assert copies.done == started
