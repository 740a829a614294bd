"""The policy in step with a vLLM: written as a model folder whenever it has changed, adapters merged into it, and
loaded from there.

Files are the one way that every vLLM has, whatever it runs on and however its weights are cut up, and that needs no
package of vLLM's in the trainer.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import nn

from posttrain.batch import PackedBatch
from posttrain.checkpoints import room_to_write
from posttrain.errors import EngineLost, UserError
from posttrain.rollout.sampling import Sampling
from posttrain.rollout.vllm_engine import Backend, Drawn, raise_lost
from posttrain.rollout.vllm_trial import TRIED, alter, batch_of, is_another, is_strange, keeps_weights, prompts_of
from posttrain.sharding import read_whole, skeleton, whole_state_dict
from posttrain.waiting import wait_for_all

if TYPE_CHECKING:
    from posttrain.trainer import PostTrainer

logger = logging.getLogger(__name__)

FOLDER = ".vllm-weights"


class WeightsInStep:
    """Sends the policy to a vLLM before it samples. Made before the weights are wrapped or spread.

    Args:
        trainer: of the run.
        backend: the vLLM.
        score: a batch → (N,) log-probs of its targets under the policy, at the temperature; called by all processes.
        temperature: of the sampling.
        folder: to write into; emptied of what an earlier run has left.
    """

    def __init__(
        self,
        trainer: PostTrainer,
        backend: Backend,
        score: Callable[[PackedBatch], torch.Tensor],
        temperature: float,
        folder: Path,
    ) -> None:
        self.trainer, self.backend, self.score, self.temperature = trainer, backend, score, temperature
        self.folder, self.is_first = folder, trainer.args.process_index == 0
        self._empty = skeleton(trainer.model) if self.is_first else None
        self._vocabulary = trainer.model.config.get_text_config().vocab_size
        self._name = secrets.token_hex(4)  # of this process's weights: a run that goes on has other ones
        self._number = 0
        self._sent: tuple[int, bool] | None = None
        if self.is_first:
            shutil.rmtree(folder, ignore_errors=True)

    def __call__(self) -> contextlib.AbstractContextManager[None]:
        """Sends the policy if it has changed; called by all processes together. What it returns gives nothing.

        Raises:
            EngineLost: vLLM has not got it.
            UserError: what vLLM has is not this model, or it does not take its weights.
        """
        # Weights change with the steps; after training, those of the best step may have been taken back.
        state = self.trainer.state.global_step, bool(self.trainer.is_in_train)
        if state != self._sent:
            if self._sent is None:
                self._try_others()
            self._send()
            if self._sent is None:
                self._compare()
            self._sent = state
        return self._drawing()

    @contextlib.contextmanager
    def _drawing(self) -> Iterator[None]:
        yield
        self.backend.rest()

    def close(self) -> None:
        """Removes the files, and lets vLLM go."""
        self.backend.close()
        if self.is_first:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _send(self, are_altered: bool = False) -> Path:
        """Writes and loads the weights of now; called by all processes. Returns the folder."""
        began, older = time.perf_counter(), self.folder / str(self._number)
        self._number += 1
        folder, version = self._write(are_altered), f"posttrain-{self._name}-{self._number}"
        wait_for_all("weights for vLLM")
        ((folder, version),) = gather_object([(folder, version)])[:1]
        lost = None
        try:
            if self.is_first or self.backend.loads_everywhere:
                self.backend.load(folder, version)
            else:
                self.backend.remember(folder, version)
        except EngineLost as error:
            lost = error
        wait_for_all("vLLM, which takes weights")
        raise_lost(gather_object([lost]))
        if self.is_first:
            shutil.rmtree(older, ignore_errors=True)
        logger.debug("vLLM has weights %d (%.2f s).", self._number, time.perf_counter() - began)
        return folder

    def _write(self, are_altered: bool) -> Path:
        """The first process writes the folder, whole or not at all; called by all."""
        state, target = whole_state_dict(self.trainer.model, self._empty), self.folder / str(self._number)
        if self._empty is not None:
            beside = self.folder / ".writing"
            with room_to_write("the policy for vLLM", Path(self.trainer.args.output_dir), beside):
                shutil.rmtree(beside, ignore_errors=True)
                beside.mkdir(parents=True)
                model = merged(self._empty, state)
                if are_altered:
                    alter(model)
                model.save_pretrained(beside)
                self._kind = type(model)
                os.replace(beside, target)
        return target.absolute()

    def _try_others(self) -> None:
        """Whether vLLM takes all weights that it is sent. At the start of a run it may have the very same already, and
        those that it kept would be missed by nobody until they are far from the policy: so it is sent quite other ones
        first."""
        folder = self._send(are_altered=True)
        wrong: str | EngineLost | None = None
        if self.is_first:
            drawn = self._draw()
            if isinstance(drawn, EngineLost):
                wrong = drawn
            else:
                # Whole, in this process alone, and without a number from the generator that training draws from.
                with read_whole(self.trainer.args), torch.random.fork_rng(devices=[]):
                    altered = self._kind.from_pretrained(folder, dtype=torch.float32).eval()
                wrong = is_strange(drawn, self._vocabulary)
                wrong = wrong or keeps_weights(drawn, altered, self._vocabulary, self.temperature)
        wait_for_all("vLLM, which is tried")
        (wrong,) = gather_object([wrong])[:1]
        raise_lost([wrong])
        if wrong is not None:
            raise UserError(
                f"vLLM keeps some of its weights when it is sent others ({wrong}); on a CPU it does so with the output "
                "head of models whose embeddings are tied: vllm.md has a way out. Else it serves another model, or "
                "otherwise; start it again with the model that is trained",
                "vllm.md#what-is-checked",
            )

    def _compare(self) -> None:
        """Whether vLLM computes the model that is trained as the trainer does."""
        drawn = self._draw() if self.is_first else None
        wait_for_all("vLLM, which is tried")
        (drawn,) = gather_object([drawn])[:1]
        raise_lost([drawn])
        batch = batch_of(drawn, self._vocabulary).to(self.trainer.args.device)
        wrong = is_another(drawn, self.score(batch).float().cpu().numpy())
        if wrong is not None:
            raise UserError(
                f"vLLM and the trainer do not compute the same model ({wrong}): vLLM quantises it, or has other "
                "positions; start it with the model that is trained, as it is",
                "vllm.md#what-is-checked",
            )

    def _draw(self) -> list[Drawn] | EngineLost:
        prompts = [prompt.tolist() for prompt in prompts_of(self._vocabulary)]
        try:
            return self.backend.draw(prompts, [1, 2], Sampling(TRIED, (), self.temperature))
        except EngineLost as error:
            return error


def merged(empty: nn.Module, state: dict[str, torch.Tensor]) -> Any:
    """The model that transformers and vLLM know, adapters merged into its weights.

    Args:
        empty: the policy without weights.
        state: its weights and buffers by name.
    """
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(state[name], requires_grad=False) for name, parameter in empty.named_parameters()
    }
    memo |= {id(buffer): state[name] for name, buffer in empty.named_buffers() if name in state}
    model: Any = copy.deepcopy(empty, memo)
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
