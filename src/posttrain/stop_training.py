"""The end of training between two steps, where a signal has asked for it, or what samples is lost: all processes at
the same step, with a checkpoint from which the same command goes on."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from posttrain import stop
from posttrain.errors import EngineLost, RunFailed, Stopped
from posttrain.waiting import wait_for_all


class Stopping(TrainerCallback):
    """Leaves the loop after the step in which the run was asked to end."""

    def __init__(self) -> None:
        self._agreed: int | None = None
        self._is_leaving = False
        self._saved = -1

    # -- several processes

    @staticmethod
    def votes() -> list[float]:
        """1 for the signal that has asked this process to end, in the order of `stop.SIGNALS`; to be added up."""
        return [float(stop.asked() == number) for number in stop.SIGNALS]

    def agree(self, votes: list[float]) -> None:
        """Takes the sum of all processes' votes, before a step; one that was asked stops all.

        Args:
            votes: in the order of `stop.SIGNALS`.
        """
        if self._agreed is None and any(votes):
            self._agreed = next(int(number) for number, count in zip(stop.SIGNALS, votes, strict=True) if count)
            stop.ask(self._agreed)
            if stop.LAUNCHED in os.environ and os.environ.get("LOCAL_RANK") == "0":
                # The launcher is not to take the end of one for a failure. It may know already, and another Ctrl-C
                # would mean something else.
                os.kill(os.getppid(), signal.SIGTERM)

    # -- callbacks

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        stop.enter(stop.Phase.STEPS)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            stop.enter(stop.Phase.END)
            return
        if args.world_size == 1:
            self._agreed = stop.asked()
        if self._agreed is not None:
            self._is_leaving = control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # transformers calls this wherever the loop is left. What is due at the end of an epoch is due when it ends.
        if self._is_leaving and state.epoch != int(state.epoch):
            control.should_log = control.should_evaluate = control.should_save = False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._saved = state.global_step

    # -- the end

    def leave(self, trainer: Any) -> None:
        """Ends the run if it was asked to end before its last step; called by all processes, after the loop.

        Args:
            trainer: of the run.

        Raises:
            Stopped: it was.
        """
        if not self._is_leaving:
            stop.enter(stop.Phase.END)
            return
        assert self._agreed is not None
        state = trainer.state
        raise Stopped(
            self._agreed,
            f"stopped by {stop.name_of(self._agreed)} after step {state.global_step} of {state.max_steps}; "
            f"{self._keep(trainer)}",
        )

    def leave_without(self, trainer: Any, lost: EngineLost) -> None:
        """Ends the run after the last step whose completions were there; called by all processes.

        Args:
            trainer: of the run.
            lost: what was lost, and whether anybody has asked the run to end meanwhile.

        Raises:
            Stopped: somebody has.
            RunFailed: nobody has.
        """
        if lost.asked is not None:
            self.agree([float(number == lost.asked) for number in stop.SIGNALS])
            self._is_leaving = True
            self.leave(trainer)
        state, way_on = trainer.state, "nothing was trained; the same command begins anew"
        if state.global_step:
            way_on = f"stopped after step {state.global_step} of {state.max_steps}; {self._keep(trainer)}"
        raise RunFailed(f"{lost}; {way_on}", lost.page) from lost

    def _keep(self, trainer: Any) -> str:
        """Writes what has not been written yet; returns where it is, and how to go on."""
        state, args = trainer.state, trainer.args
        if self._saved != state.global_step:  # transformers saves for --save_strategy best only what is better
            trainer._save_checkpoint(trainer.model, None)
        trainer._finish_current_push()
        trainer.callback_handler.on_train_end(args, state, trainer.control)  # trackers write what they have
        wait_for_all("trackers")
        args.distributed_state.wait_for_everyone()  # nobody looks into the store any more, which the first takes along
        way_on = "the same command goes on from there"
        if args.save_only_model:
            way_on = "training cannot go on from it, since --save_only_model keeps the weights alone"
        return f"kept in {Path(args.output_dir) / f'checkpoint-{state.global_step}'}; {way_on}"


@contextlib.contextmanager
def leaving_if_lost(trainer: Any) -> Iterator[None]:
    """While the batches of a step are sampled: if what samples them is lost, the run ends as if that had not begun.

    Args:
        trainer: of the run.

    Raises:
        Stopped, RunFailed: it is.
    """
    sampling = trainer.method.sampling_state()
    if sampling is None:
        yield
        return
    progress = trainer.progress_state()
    try:
        yield
    except EngineLost as lost:
        trainer.method.load_sampling_state(sampling)
        trainer.restore_progress(progress)
        trainer.stopping.leave_without(trainer, lost)
