"""Checkpoints that are whole or absent, and runs that go on from them as if nothing had happened: weights, and every
number that is logged."""

from __future__ import annotations

import logging
import pickle
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import IntervalStrategy

from posttrain.checkpoints import PAGE, publish, room_to_write, rotate, saving_folder, write_manifest
from posttrain.errors import UserError
from posttrain.models import follow_umask
from posttrain.waiting import wait_for_all

# transformers' pickled arguments, full of paths: nothing reads them.
ARGUMENTS_FILE = "training_args.bin"


class _GoOn(TrainerCallback):
    """Takes up what was under way, once the loop has set everything to its beginning."""

    def __init__(self, trainer: CheckpointTrainer):
        self.trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        state, self.trainer.to_restore = self.trainer.to_restore, {}
        if state:
            self.trainer.restore_progress(state)


class CheckpointTrainer(Trainer):
    """transformers.Trainer, with checkpoints written beside, hashed, brought to the disk and renamed; and with what is
    under way between two log lines in them."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.add_callback(_GoOn(self))
        self.to_restore: dict[str, Any] = {}
        self._seconds_before = 0.0
        self._began = time.time()
        self._save_at_epoch_end = False
        if self.args.save_on_each_node:  # of which transformers' models know nothing: the very first process writes
            self.model.should_save_on_this_rank = lambda is_main_process: is_main_process

    # -- writing

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes a checkpoint; called by all processes."""
        args, run, step = self.args, Path(self.args.output_dir), self.state.global_step
        beside = saving_folder(run, step)
        self.store_flos()
        with room_to_write(f"checkpoint-{step}", run, beside):
            if args.local_process_index == 0:
                shutil.rmtree(beside, ignore_errors=True)
            wait_for_all("the step before")
            self.save_model(str(beside), _internal_call=True)
            wait_for_all("writing the model")
            if not args.save_only_model:
                self._save_optimizer_and_scheduler(str(beside))
                self._save_scaler(str(beside))
                self._save_rng_state(str(beside))
            best = self.state.best_global_step
            if best is not None and (best == step or (run / f"checkpoint-{best}").is_dir()):
                self.state.best_model_checkpoint = str(run / f"checkpoint-{best}")
            if args.should_save:
                self._save_state(beside)
            wait_for_all("writing the checkpoint")
            self._publish(beside)
        if args.push_to_hub:
            self._push_from_checkpoint(str(run / f"checkpoint-{step}"))
        self._rotate()

    def _rotate(self) -> None:
        if self.args.local_process_index == 0:
            keep = {self.state.global_step, self.state.best_global_step} - {None}
            rotate(Path(self.args.output_dir), self.args.save_total_limit, keep)

    def _save_state(self, beside: Path) -> None:
        state = self.state
        for one in [*self.callback_handler.callbacks, self.control]:
            if isinstance(one, ExportableState):
                kept, name = state.stateful_callbacks, type(one).__name__
                if isinstance(kept.get(name), list):
                    kept[name].append(one.state())
                else:
                    kept[name] = one.state()
        state.save_to_json(str(beside / TRAINER_STATE_NAME))

    def _publish(self, beside: Path) -> None:
        """Of each disk, one process makes the checkpoint whole: the first, and of machines that do not see its disk
        their own first."""
        for is_first_round in (True, False):
            if self.args.local_process_index == 0 and self.args.should_save == is_first_round and beside.is_dir():
                (beside / ARGUMENTS_FILE).unlink(missing_ok=True)
                follow_umask(beside)
                write_manifest(beside)
                publish(beside)
            wait_for_all("the checkpoint's manifest")

    # -- what is under way

    def progress_state(self) -> dict[str, Any]:
        """What the next log line and the end of the run will tell, and has not been logged; numbers."""
        return {
            "loss_since_log": self._tr_loss.item(),
            "loss_until_log": self._total_loss_scalar,
            "step_of_last_log": self._globalstep_last_logged,
            "seconds": time.time() - self._began + self._seconds_before,
        }

    def restore_progress(self, state: dict[str, Any]) -> None:
        """Goes on where `progress_state` was called."""
        self._tr_loss = torch.tensor(state["loss_since_log"], device=self.args.device)
        self._total_loss_scalar = state["loss_until_log"]
        self._globalstep_last_logged = state["step_of_last_log"]
        self._seconds_before = state["seconds"]
        self._initial_global_step = 0  # what is reported at the end is of the whole run

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> Any:
        log = logging.getLogger("transformers.trainer_utils")
        level = log.level
        log.setLevel(logging.ERROR)  # it would tell that a share of the steps, such as save_steps 0.1, is no number
        begin = super()._init_training_state(max_steps, *args, **kwargs)
        log.setLevel(level)
        self.state.compute_steps(self.args, max_steps)  # when to log, evaluate and save: as the flags say now
        state, run = self.state, Path(self.args.output_dir)
        if state.best_global_step is not None and state.best_model_checkpoint is None:  # the run's folder was moved
            state.best_model_checkpoint = str(run / f"checkpoint-{state.best_global_step}")
        if self.args.load_best_model_at_end and not Path(state.best_model_checkpoint or run).is_dir():
            raise UserError(
                f"--load_best_model_at_end: the best checkpoint so far, {state.best_model_checkpoint}, is gone; put it "
                "back, or start anew with --resume_from_checkpoint false",
                PAGE,
            )
        return begin

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Trains; see transformers.Trainer.train."""
        self._began = time.time()
        if resume_from_checkpoint:
            self.args.eval_on_start = False  # the run has started before
        try:
            return super().train(resume_from_checkpoint, **kwargs)
        except pickle.UnpicklingError as error:  # all is read with weights_only
            raise UserError(
                f"--resume_from_checkpoint {resume_from_checkpoint} holds objects that are no tensors, numbers, text; "
                "reading them could run code, so it is not done; take a checkpoint of your own, or start anew with "
                "--resume_from_checkpoint false",
                PAGE,
            ) from error

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self._at_epoch_end = False
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
        else:
            self.control.should_training_stop = True  # the checkpoint is that of the last step

    def _finalize_training(self, trial: Any, num_train_samples: Any, start_time: float) -> Any:
        self._rotate()  # it may be that the run was killed between its last checkpoint and this
        return super()._finalize_training(trial, num_train_samples, start_time - self._seconds_before)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """What is logged or evaluated at the end of an epoch belongs into a checkpoint of its last step: a run that
        goes on from there begins with the next epoch."""
        is_last_step = self.state.epoch == int(self.state.epoch or 0) or self.state.global_step >= self.state.max_steps
        at_epoch_end, self._at_epoch_end = self._at_epoch_end, is_last_step
        if is_last_step and IntervalStrategy.EPOCH in (self.args.logging_strategy, self.args.eval_strategy):
            if not at_epoch_end:
                self._save_at_epoch_end, self.control.should_save = self.control.should_save, False
            else:
                self.control.should_save |= self._save_at_epoch_end
                self._save_at_epoch_end = False
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """A checkpoint's manifest says that it is whole; tied weights stand in it once."""
