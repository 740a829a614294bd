"""One trainer for every method: transformers' loop, with losses as sums over packed batches.

Of a step's micro-batches all weights are known before the first backward pass, so each is divided by the weight of the
whole optimizer step, over all ranks, and any cut of a step into micro-batches and ranks gives the same step.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput

from posttrain.batch import PackedBatch
from posttrain.counts import Counts
from posttrain.data.ahead import Coming
from posttrain.data.stream import Stream
from posttrain.errors import UserError
from posttrain.finite import FiniteTrainer
from posttrain.log_line import LogTrainer
from posttrain.losses import Loss
from posttrain.methods import Method
from posttrain.offloading import offloading_from
from posttrain.publish import HubTrainer
from posttrain.sharded_trainer import ShardedTrainer
from posttrain.sharding import is_sharded
from posttrain.shares import eval_loader, train_loader
from posttrain.step_record import StepRecord
from posttrain.stop_training import Stopping, leaving_if_lost
from posttrain.trainer_flags import PackedTrainer
from posttrain.waiting import wait_for_all
from posttrain.watch import NotFinite

# Beside a checkpoint's other files, one a process: what a method needs to go on, and what has not been logged yet.
STATE_FILE = "posttrain_state_{rank}.pt"

# Devices beside which a core is idle.
READING_AHEAD = {"cuda"}


class PostTrainer(LogTrainer, HubTrainer, FiniteTrainer, PackedTrainer, ShardedTrainer):
    """transformers.Trainer for packed batches.

    Args:
        method: what is trained.
        scorer: of the policy; the method's.
        **kwargs: of transformers.Trainer; the collator is the method's.
    """

    _tr_loss: torch.Tensor

    def __init__(self, method: Method, scorer: Any, **kwargs: Any):
        self.method = method
        self.scorer = scorer
        self.router_loss_coef = method.config.router_aux_loss_coef
        super().__init__(data_collator=method.collate, **kwargs)
        # Losses here are divided by the weight of the whole step: nothing is left to divide by.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self.stopping = Stopping()
        self.add_callback(self.stopping)
        self._record: StepRecord | None = None
        self._coming: tuple[Iterator[PackedBatch], Coming[list[PackedBatch]]] | None = None
        self._offloading = offloading_from(self.args.device) if method.config.activation_offloading else None

    def record_steps(self, record: StepRecord) -> None:
        """Has every step written down, from the next on."""
        self._record = record
        self.add_callback(record)

    # -- batches

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The method's batches where it makes them itself, else the collated rows of the data set."""
        loader = self.method.loader(self, self.train_dataset, in_evaluation=False)
        return train_loader(self, super().get_train_dataloader) if loader is None else loader

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """The same for evaluation."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        loader = self.method.loader(self, rows, in_evaluation=True)
        return eval_loader(self, rows, super().get_eval_dataloader) if loader is None else loader

    def get_batch_samples(
        self, epoch_iterator: Iterator[PackedBatch], num_batches: int, device: torch.device
    ) -> tuple[list[PackedBatch], dict[str, float]]:
        """The micro-batches of one optimizer step, and what their losses are divided by."""
        with leaving_if_lost(self):
            batches = self._next_batches(epoch_iterator, num_batches)
        if self._record is not None:
            self._record.batches(batches)
        totals: dict[str, float] = defaultdict(float)
        for batch in batches:
            for name, weight in self.method.weights(batch).items():
                totals[name] += 0 if batch.is_filler else weight
            self.tokens_since_log += 0 if batch.is_filler else batch.num_tokens
        if self.args.world_size > 1 and totals:
            wait_for_all("reading rows")
            values = torch.tensor([*totals.values(), *self.stopping.votes()], device=device)
            sums = self.accelerator.reduce(values, "sum").tolist()
            self.stopping.agree(sums[len(totals) :])
            totals = dict(zip(totals, sums, strict=False))
        return batches, dict(totals)

    def _next_batches(self, batches: Iterator[PackedBatch], number: int) -> list[PackedBatch]:
        if not self._reads_ahead:
            return list(itertools.islice(batches, number))
        coming, self._coming = self._coming, None
        if coming is not None and coming[0] is batches:  # of another epoch nothing comes but its end
            found = coming[1].result()
        else:
            found = list(itertools.islice(batches, number))
        if found:
            self._coming = batches, Coming(list(itertools.islice(batches, number)) for _ in range(1))
        return found

    @property
    def _reads_ahead(self) -> bool:
        """Whether a thread puts the next step's batches together while a GPU computes this one. Not where batches are
        sampled from the policy, where a stream or other processes do so already."""
        is_stored = isinstance(self.train_dataset, Dataset) and self.args.dataloader_num_workers == 0
        return is_stored and not self.method.makes_batches and self.args.device.type in READING_AHEAD

    def _prepare_inputs(self, inputs: PackedBatch) -> PackedBatch:
        if self.args.device.type == "cuda" and self.args.dataloader_pin_memory:
            inputs = inputs.pin_memory()  # generations and streamed rows come from no loader that does
        return self.method.complete(inputs.to(self.args.device, non_blocking=True), self.model_wrapped)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self._record is not None:
            self._record.gradient(self._losses, norm)
        return norm

    def floating_point_ops(self, inputs: PackedBatch) -> int:
        """6 operations a parameter and token, without those of attention."""
        return 6 * self._num_parameters * inputs.input_ids.shape[0]

    @property
    def _num_parameters(self) -> int:
        if not hasattr(self, "_parameter_count"):
            self._parameter_count = sum(p.numel() for p in self.model.parameters())
        return self._parameter_count

    # -- loss

    def score(self, model: nn.Module, batch: PackedBatch) -> Any:
        """What the scorer says of a batch, in mixed precision from its first line on: the wrapped model switches that
        on for itself alone, when its inputs have been made."""
        with self.accelerator.autocast():
            return self.scorer(model, batch)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: PackedBatch,
        return_outputs: bool = False,
        num_items_in_batch: dict[str, float] | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """This micro-batch's share of the step's loss; shares of all micro-batches and ranks add up to the loss."""
        statistics = self.score(model, inputs)
        loss = self.method.loss(inputs, statistics)
        totals = num_items_in_batch or self.method.weights(inputs)
        # A step without a single target has sums of 0, and nothing to divide them by.
        share = sum(term.sum * (term.coefficient / (totals[term.divide_by] or 1.0)) for term in loss.terms)
        self.count(loss, inputs.is_filler)
        if self.router_loss_coef and statistics.router_loss is not None:
            # A mean over the tokens of one forward pass; micro-batches count by their targets.
            part = inputs.num_targets / (totals["targets"] or 1.0)
            share = share + self.router_loss_coef * part * statistics.router_loss
            self.count(Loss((), {"aux_loss": (statistics.router_loss * part, part)}), inputs.is_filler)
        # The wrappers of data parallelism average gradients over ranks; the shares are to be added.
        share = share * (self.args.world_size * (not inputs.is_filler))
        return (share, statistics) if return_outputs else share

    def compute_loss_context_manager(self) -> contextlib.ExitStack:
        """With `--activation_offloading`, what the backward pass needs waits in the CPU's memory."""
        stack = super().compute_loss_context_manager()
        if self._offloading is not None:
            stack.enter_context(self._offloading)
        return stack

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self.stopping.leave(self)
        # What has not been logged: of all processes, as what has.
        self._tr_loss = self.accelerator.gather(self._tr_loss.reshape(1)).mean()
        return super()._finalize_training(*args, **kwargs)

    # -- checkpoints

    def progress_state(self) -> dict[str, Any]:
        """What is under way, and what has been looked at for numbers that are not finite."""
        return super().progress_state() | {"finite": self.finite_state()}

    def restore_progress(self, state: dict[str, Any]) -> None:
        """Goes on where `progress_state` was called."""
        super().restore_progress(state)
        self.load_finite_state(state["finite"])

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        state = {"method": self.method.state_dict(), "progress": self.progress_state()}
        # This process may be here before the one that saves the model, or on a disk of its own.
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        torch.save(state, Path(output_dir) / STATE_FILE.format(rank=self.args.process_index))
        if isinstance(self.train_dataset, Stream) and self.args.should_save:
            self.train_dataset.save_place(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        self._step_of_last_log = self.state.global_step
        if isinstance(self.train_dataset, Stream):
            self.train_dataset.load_place(checkpoint)
        path = Path(checkpoint) / STATE_FILE.format(rank=self.args.process_index)
        if path.is_file():
            state = torch.load(path, weights_only=True)
            self.to_restore = state["progress"]
            self.method.load_state_dict(state["method"])
        elif self.method.state_dict():
            raise UserError(
                f"--resume_from_checkpoint {checkpoint} has no {path.name}, without which this run cannot go on where "
                "it was; take as many processes as then, or start anew"
            )

    # -- evaluation

    @torch.no_grad()
    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The same loss and metrics as in training, over a whole data set: sums divided once, at the end."""
        began = time.perf_counter()
        training, self._counts = self._counts, Counts()
        model = self.model_wrapped
        if not self.is_in_train and not is_sharded(self.args):  # sharded weights stay as training has wrapped them
            model = self.accelerator.prepare_model(self.model, evaluation_mode=True)
        was_training = model.training
        model.eval()
        num_samples = 0
        names: list[str] = []
        self.not_finite = NotFinite()
        for inputs in dataloader:
            batch = self._prepare_inputs(inputs)
            loss = self.method.loss(batch, self.score(model, batch))
            weights = self.method.weights(batch)
            for i, term in enumerate(loss.terms):
                names.append(f"term {i}")
                one = (term.sum * term.coefficient, float(weights[term.divide_by]))
                self.count(Loss((), {f"term {i}": one}), batch.is_filler)
            self.count(loss, batch.is_filler)
            self.not_finite.add(torch.stack([term.sum for term in loss.terms]).sum(), batch.places)
            num_samples += 0 if batch.is_filler else batch.num_groups
            self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        wait_for_all("evaluation")
        means = self._pop_metrics()
        terms = [means.pop(name) for name in dict.fromkeys(names) if name in means]
        metrics = {f"{metric_key_prefix}_loss": sum(terms)}
        metrics.update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
        model.train(was_training)
        self._counts = training
        self._clock += time.perf_counter() - began
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=num_samples)
