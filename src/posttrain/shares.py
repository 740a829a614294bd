"""Which rows each of several processes trains and evaluates on.

A batch of all processes together is cut into equal parts, in the order of their ranks. At the end of the data, where
rows do not suffice for all, some processes get fewer, or a filler: a batch that keeps them in step with the others,
whose calls they take part in, and of which nothing counts. So no row is seen twice, and the last step of an epoch and
every evaluation are those of a single process.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from posttrain.batch import PackedBatch
from posttrain.data.progress import is_first_process
from posttrain.data.stream import Collate, Stream
from posttrain.errors import UserError
from posttrain.stop import held_back, shielded

if TYPE_CHECKING:
    from posttrain.trainer import PostTrainer

logger = logging.getLogger(__name__)

_FILLER = -1


def train_loader(trainer: PostTrainer, plain: Callable[[], DataLoader[Any]]) -> DataLoader[Any]:
    """Batches of this process to train on.

    Args:
        trainer: with the rows, and all processes' numbers.
        plain: makes transformers' own loader, which is right for one process, and knows the order of rows.
    """
    args, rows = trainer.args, trainer.train_dataset
    if isinstance(rows, Stream):
        if args.world_size > 1 and not _is_divided_here(trainer):
            raise UserError(
                "streamed rows are divided among processes one batch each; leave out split_batches "
                "(--accelerator_config), parallelism_config (--accelerate_config), or --dataset_streaming"
            )
        if args.dataloader_num_workers and is_first_process():
            logger.warning("--dataloader_num_workers: without effect, streamed rows are read as they are trained on")
        number = args.max_steps * args.gradient_accumulation_steps
        batch_size = trainer._train_batch_size
        return rows.loader(trainer.data_collator, batch_size, args.world_size, args.process_index, number)
    loader = plain()
    if not _is_divided_here(trainer):
        return _shield(loader)
    order: Any = loader.batch_sampler  # accelerate's part of all batches
    return _shared(trainer, rows, order.batch_sampler)


def eval_loader(trainer: PostTrainer, rows: Any, plain: Callable[[Any], DataLoader[Any]]) -> DataLoader[Any]:
    """Batches of this process to evaluate on.

    Args:
        trainer: with all processes' numbers.
        rows: to evaluate on.
        plain: makes transformers' own loader of rows, which is right for one process.
    """
    if not _is_divided_here(trainer):
        return _shield(plain(rows))
    return _shared(trainer, rows, BatchSampler(range(len(rows)), trainer.args.eval_batch_size, drop_last=False))


def _is_divided_here(trainer: PostTrainer) -> bool:
    """Whether there are several processes, each of which takes batches of its own: accelerate divides differently where
    some of them share a row (`parallelism_config`), or a batch (`split_batches`)."""
    accelerator = trainer.accelerator
    return trainer.args.world_size > 1 and not accelerator.split_batches and accelerator.torch_device_mesh is None


def _shared(trainer: PostTrainer, rows: Any, batches: BatchSampler) -> DataLoader[Any]:
    args = trainer.args
    loader: DataLoader[Any] = DataLoader(
        _Rows(rows),
        batch_sampler=Share(batches, args.world_size, args.process_index),
        collate_fn=partial(_collate, trainer.method.collate, rows[0]),
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        multiprocessing_context=args.dataloader_multiprocessing_context,
        prefetch_factor=args.dataloader_prefetch_factor,
        in_order=args.dataloader_in_order,
    )
    return _shield(loader)


def _shield(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Lets the processes of a loader outlive signals, which are the business of the process that trains; and batches
    stay where they are, until the trainer moves them: accelerate would wait for the GPU with each of their tensors."""
    if getattr(loader, "device", None) is not None:
        loader.device = None
    inner: Any = getattr(loader, "base_dataloader", loader)  # accelerate puts one around it
    if getattr(inner.worker_init_fn, "func", None) is not shielded:  # transformers keeps loaders of evaluation
        begin = inner._get_iterator

        def begin_held_back() -> Any:
            with held_back():
                return begin()

        inner.worker_init_fn = partial(shielded, inner.worker_init_fn)
        inner._get_iterator = begin_held_back
    return loader


def _collate(collate: Collate, first: Any, rows: list[Any]) -> PackedBatch:
    return dataclasses.replace(collate([first]), is_filler=True) if rows[0] is None else collate(rows)


class Share(Sampler[list[int]]):
    """The indices of one process's batches.

    Args:
        batches: indices of the rows of batch after batch, in the order of the run, all of the same size but the last.
        world_size: processes.
        rank: number of this one.
    """

    def __init__(self, batches: BatchSampler, world_size: int, rank: int):
        self.batches, self.world_size, self.rank = batches, world_size, rank

    def __len__(self) -> int:
        whole, rest = divmod(len(self.batches), self.world_size)
        return whole + bool(rest and not self.batches.drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        together: list[list[int]] = []
        for batch in self.batches:
            together.append(batch)
            if len(together) == self.world_size:
                yield together[self.rank]
                together = []
        if together and not self.batches.drop_last:
            yield together[self.rank] if self.rank < len(together) else [_FILLER]

    @property
    def batch_sampler(self) -> Share:
        """Where transformers looks for what has a `set_epoch`, be this the loader's own sampler or one that skips."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """The order of another epoch."""
        for part in (self.batches, self.batches.sampler):
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)


class _Rows(Dataset[Any]):
    """Rows by index, and None for a filler."""

    def __init__(self, rows: Any):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return None if index == _FILLER else self.rows[index]
