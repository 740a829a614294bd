"""Steps whose loss or gradient is not finite: they are not applied, they are counted, and the rows that they held are
named.

What is looked at are the losses of a step's micro-batches on all ranks and the norm of its gradient, once a step and
before the optimizer: one transfer from the GPU, and with several processes one sum of five numbers. A step that is not
applied leaves parameters, the optimizer's state and the logged means as they were; the schedule of the learning rate
goes on.

Where something else steps, that is not possible. A loss scaler (`--fp16`) skips steps whose scaled gradients overflow
by itself and lowers its scale: that is how it finds it, so these do not count until the scale is 1. DeepSpeed, and
optimizers that update during the backward pass, have applied the step before its gradient is known: training stops at
once, without a checkpoint of what is spoilt.
"""

from __future__ import annotations

import copy
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType, gather_object
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from posttrain.data.places import together
from posttrain.errors import RunFailed
from posttrain.watch import NotFinite, Watch, is_finite

if TYPE_CHECKING:
    from posttrain.batch import PackedBatch

logger = logging.getLogger(__name__)

PAGE = "troubleshooting.md#numbers"
_ROWS_NAMED = 40
_STEPS_IN_BACKWARD = ("lomo", "adalomo")


class FiniteTrainer(Trainer):
    """transformers.Trainer, which applies finite steps alone, and warns of leaping losses and of dead gradients.

    Args:
        **kwargs: of transformers.Trainer.
    """

    method: Any
    _tr_loss: torch.Tensor
    _counts: Any  # of the log line under way; a copy of it is taken before each step

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.args.logging_nan_inf_filter = False  # it would wait for the GPU in every micro-batch, and hide the loss
        self.nonfinite_steps = self._in_a_row = 0
        self._bad_rows: list[str] = []  # of the steps in a row
        self._applied = self._skipped = 0  # since the last line
        self._watch = Watch()
        self._is_skipped = self._gave_up = False
        self._last_trouble = ""
        self.not_finite = NotFinite()  # of the last evaluation
        self._begin_step()
        self.add_callback(_Steps(self))

    # -- a step

    def _begin_step(self) -> None:
        self._losses: list[torch.Tensor] = []
        self._places: list[tuple[str, ...]] = []
        self._signals: list[float] = []
        self._num_targets = 0
        self._is_skipped = False
        if hasattr(self, "_tr_loss"):
            self._before = self._tr_loss.clone(), copy.copy(self._counts)

    def training_step(self, model: nn.Module, inputs: PackedBatch, *args: Any, **kwargs: Any) -> torch.Tensor:
        """A forward and backward pass; its loss is kept until the step is complete."""
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._losses.append(loss.float())
        self._places.append(inputs.places)
        self._num_targets += 0 if inputs.is_filler else inputs.num_targets or inputs.num_groups * self._scores_pairs
        if inputs.advantages is not None:
            # Of the batch as it came, on the CPU: a copy to the GPU would be waited for.
            self._signals.append(float(inputs.advantages.any()))
        return loss

    @property
    def _scores_pairs(self) -> bool:
        return bool(self.method.config.data_kind == "reward")

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        device, count = self._losses[0].device, len(self._losses)
        norm_here = torch.as_tensor(1.0 if norm is None else norm, device=device).float()
        signals_here = torch.tensor(self._signals, device=device)
        own = torch.cat([torch.stack([*self._losses, norm_here]), signals_here])
        if self.args.world_size > 1:
            # Processes may differ in their numbers of micro-batches, and in nothing that follows from these sums.
            targets = torch.tensor(float(self._num_targets), device=device)
            bad = [(~own[:count].isfinite()).any().float(), (~norm_here.isfinite()).float()]
            sums = torch.stack([own[:count].sum(), *bad, own[count + 1 :].sum(), targets])
            own = torch.cat([own, self.accelerator.reduce(sums, "sum")])
        numbers = own.tolist()
        losses, gradient_norm, signals = numbers[:count], numbers[count], numbers[count + 1 :][: len(self._signals)]
        if self.args.world_size > 1:
            loss, bad_loss, bad_norm, signal, num_targets = numbers[-5:]
        else:
            loss, bad_loss = sum(losses), not all(map(math.isfinite, losses))
            bad_norm, signal, num_targets = not math.isfinite(gradient_norm), sum(signals), self._num_targets
        if bad_loss or bad_norm:
            self._refuse("the loss" if bad_loss else "the norm of the gradient", losses, bool(bad_loss))
        else:
            has_signal = bool(signal) or not self._signals
            self._accept(loss / self.args.world_size, gradient_norm, num_targets, has_signal)
        return norm

    def _accept(self, loss: float, gradient_norm: float, num_targets: float, has_signal: bool) -> None:
        self._applied, self._in_a_row, self._bad_rows = self._applied + 1, 0, []
        step = self.state.global_step + 1
        spike = self._watch.spike(step, loss)
        dead = self._watch.dead(step, gradient_norm, num_targets, has_signal)
        if spike:
            self._warn("%s; its rows: %s (docs/%s)", spike, together(self._rows(self._places), _ROWS_NAMED), PAGE)
        if dead:
            self._warn("%s (docs/%s)", dead, PAGE)

    def _refuse(self, what: str, losses: list[float], is_loss: bool) -> None:
        """Leaves everything as it was before the step; called by all processes."""
        scaler = self.accelerator.scaler
        if scaler is not None and not is_loss and scaler.get_scale() > 1:
            self._applied += 1  # its loss is one to be logged
            return
        bad = [of_one for of_one, loss in zip(self._places, losses, strict=True) if not math.isfinite(loss)]
        rows = self._rows(bad if is_loss else self._places)
        step = self.state.global_step + 1
        self._last_trouble = f"step {step}: {what} is not finite; rows: {together(rows, _ROWS_NAMED)}"
        if self._is_applied_already:
            raise RunFailed(
                f"{self._last_trouble}. This optimizer had applied it before that was known, so the weights are spoilt "
                "and not saved. Go on from the checkpoint before, if there is one, with a lower --learning_rate, or "
                "with an optimizer and a configuration that leave steps to be looked at",
                PAGE,
            )
        self.nonfinite_steps, self._in_a_row = self.nonfinite_steps + 1, self._in_a_row + 1
        self._skipped += 1
        self._bad_rows += rows
        self._tr_loss, self._counts = self._before
        self.method.step_skipped()
        if scaler is not None:
            scaler.update()  # it has looked at the gradients, and wants to hear of a step's end
        self._is_skipped = True
        # accelerate's optimizers do nothing in a step without synchronised gradients, which is how they accumulate.
        self.accelerator.gradient_state._set_sync_gradients(False)
        self._warn("%s. It is not applied (%d so far; docs/%s)", self._last_trouble, self.nonfinite_steps, PAGE)

    @property
    def _is_applied_already(self) -> bool:
        optim = str(getattr(self.args.optim, "value", self.args.optim))
        in_backward = optim in _STEPS_IN_BACKWARD or optim.endswith("_layerwise")
        is_deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        return in_backward or (is_deepspeed and not self.accelerator.optimizer_step_was_skipped)

    def _end_optimizer_step(self) -> None:
        if self._is_skipped:
            self.accelerator.gradient_state._set_sync_gradients(True)
            # The schedule goes on; torch would warn of one that is ahead of its optimizer, were this the first step.
            optimizer: Any = self.optimizer
            getattr(optimizer, "optimizer", optimizer)._opt_called = True

    def _rows(self, places: list[tuple[str, ...]]) -> list[str]:
        """Of all processes, which call this together."""
        own = [place for of_one in places for place in of_one]
        return [place for of_one in gather_object([own]) for place in of_one]

    def _warn(self, message: str, *values: Any) -> None:
        if self.is_world_process_zero():
            logger.warning(message, *values)

    # -- the end of it

    def _has_given_up(self) -> bool:
        self._gave_up |= self._in_a_row >= self.method.config.max_nonfinite_steps
        return self._gave_up

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        if self._gave_up:  # before a best model is loaded, and checkpoints removed in its favour
            checkpoint = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            if not checkpoint.is_dir():  # --save_strategy best saves what is better alone
                self._save_checkpoint(self.model, None)
            way_on = ", and the same command goes on from there with the rows that follow"
            raise RunFailed(
                f"{self._in_a_row} steps in a row were not finite and have not been applied (--max_nonfinite_steps "
                f"{self.method.config.max_nonfinite_steps}). The last one was {self._last_trouble}. "
                f"The rows of all of them: {together(self._bad_rows, _ROWS_NAMED)}.\n"
                f"{checkpoint} holds the model without them{'' if self.args.save_only_model else way_on}. If the rows "
                "are sound: a lower --learning_rate, a lower --max_grad_norm, --bf16 in place of --fp16, and a new "
                "--output_dir",
                PAGE,
            )
        return super()._finalize_training(*args, **kwargs)

    # -- evaluation

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluates, and says so where what comes out is not finite; see transformers.Trainer.evaluate."""
        metrics = super().evaluate(*args, **kwargs)
        bad = [name for name, value in metrics.items() if not is_finite(value)]
        if bad:
            rows = together(self._rows(self.not_finite.places()), _ROWS_NAMED) or "none by itself"
            values = (self.state.global_step, ", ".join(bad), rows, PAGE)
            self._warn("step %d: not finite: %s; rows: %s (docs/%s)", *values)
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        name = self.args.metric_for_best_model
        values = [metrics.get(one) for one in (name, f"eval_{name}") if one in metrics]
        if values and not is_finite(values[0]):
            return False  # nothing would ever be better than NaN
        return super()._determine_best_metric(metrics, trial)

    # -- logging and checkpoints

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Makes a line's loss the mean over the steps that were applied, and adds how many were not."""
        if "loss" in logs:
            scale_mean(logs, "loss", self._applied, self._skipped)
            self._applied = self._skipped = 0
            if self._is_skipped or not is_finite(logs.get("grad_norm")):
                logs.pop("grad_norm", None)
        if "train_loss" in logs:
            steps = self.state.global_step - getattr(self, "_initial_global_step", 0)
            scale_mean(logs, "train_loss", max(0, steps - self.nonfinite_steps), min(steps, self.nonfinite_steps))
        if self.nonfinite_steps and ("learning_rate" in logs or "train_runtime" in logs):
            logs["nonfinite_steps"] = self.nonfinite_steps
        super().log(logs, start_time)

    def finite_state(self) -> dict[str, Any]:
        """What has been counted so far: numbers, lists and dicts."""
        return {
            "nonfinite_steps": self.nonfinite_steps,
            "in_a_row": self._in_a_row,
            "bad_rows": self._bad_rows,
            "applied": self._applied,
            "skipped": self._skipped,
            "watch": self._watch.state_dict(),
        }

    def load_finite_state(self, state: dict[str, Any]) -> None:
        """Goes on where `finite_state` was called; a run that gave up there may try as often again."""
        given_up = state["in_a_row"] >= self.method.config.max_nonfinite_steps
        self.nonfinite_steps, self._in_a_row = state["nonfinite_steps"], 0 if given_up else state["in_a_row"]
        self._bad_rows = [] if given_up else list(state["bad_rows"])
        self._applied, self._skipped = state["applied"], state["skipped"]
        self._watch = Watch(**state["watch"])


def scale_mean(logs: dict[str, float], name: str, applied: int, skipped: int) -> None:
    """A sum over the applied steps, divided by all steps → their mean; taken out where there are none.

    Args:
        logs: changed in place.
        name: of the value.
        applied, skipped: numbers of steps.
    """
    if skipped and applied:
        logs[name] *= (applied + skipped) / applied
    elif skipped:
        del logs[name]


class _Steps(TrainerCallback):
    """Tells a trainer where in a step it is."""

    def __init__(self, trainer: FiniteTrainer):
        self.trainer = trainer

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer._begin_step()

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.trainer._end_optimizer_step()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.trainer._has_given_up():
            control.should_save = control.should_training_stop = True
