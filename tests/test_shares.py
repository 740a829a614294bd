"""Which rows each of several processes sees: all of them once, in the order of one process."""

import pytest
import torch
from accelerate import skip_first_batches
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from posttrain.losses import Loss
from posttrain.shares import Share


def parts(num_rows: int, batch_size: int, world_size: int, drop_last: bool = False) -> list[list[list[int]]]:
    """The batches of each process."""
    batches = BatchSampler(range(num_rows), batch_size, drop_last)
    shares = [Share(batches, world_size, rank) for rank in range(world_size)]
    found = [list(share) for share in shares]
    assert [len(share) for share in shares] == [len(one) for one in found] == [len(found[0])] * world_size
    return found


def test_the_last_batch_of_all_is_shared_too() -> None:
    assert parts(8, 2, 2) == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]
    assert parts(7, 2, 2) == [[[0, 1], [4, 5]], [[2, 3], [6]]]
    assert parts(5, 2, 2) == [[[0, 1], [4]], [[2, 3], [-1]]]  # -1: nothing is left for the second
    assert parts(1, 2, 3) == [[[0]], [[-1]], [[-1]]]
    assert parts(7, 2, 2, drop_last=True) == [[[0, 1]], [[2, 3]]]


@pytest.mark.parametrize("num_rows", range(1, 14))
def test_every_row_once_and_in_the_steps_of_one_process(num_rows: int) -> None:
    one = [sorted(batch) for batch in parts(num_rows, 6, 1)[0]]
    three = parts(num_rows, 2, 3)
    together = [sorted(row for part in step for row in part if row >= 0) for step in zip(*three, strict=True)]
    assert together == one


def test_the_order_of_an_epoch_is_asked_for() -> None:
    class Order(SequentialSampler):
        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

    order = Order(range(4))
    loader = DataLoader(range(4), batch_sampler=Share(BatchSampler(order, 2, False), 2, 0))
    for epoch, one in enumerate((loader, skip_first_batches(loader, 1)), start=3):  # as transformers does
        one.batch_sampler.batch_sampler.set_epoch(epoch)
        assert order.epoch == epoch


def test_nothing_counts_of_a_filler() -> None:
    one = torch.tensor(1.0)
    empty = Loss((), {"a": (one, 2.0)}, {"b": one}, {"c": one}).emptied()
    assert empty.metrics == {"a": (0.0, 0.0)} and not empty.terms
    assert torch.minimum(empty.minima["b"], one) == torch.maximum(empty.maxima["c"], one) == one
