"""What GRPO and RLOO share in where their batches come from: prompts become completions with rewards, in generations
that stand in checkpoints. What the loss needs of them is policy.py's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object

from posttrain.batch import PackedBatch
from posttrain.config import PolicyConfig
from posttrain.data.stream import Stream
from posttrain.errors import UserError
from posttrain.losses.advantages import zero_variance_groups
from posttrain.methods import Method
from posttrain.reference import mixed_precision
from posttrain.rollout.collect import Collector, Rollout
from posttrain.rollout.engines import Policy, check_engine, make_engine, policy_for, sampling_of
from posttrain.rollout.loader import EvalRollouts, TrainRollouts
from posttrain.rollout.observer import Observer, without_rare
from posttrain.rollout.rewards.check import check_columns, required_columns, reward_files
from posttrain.rollout.rewards.table import Rewards, build_rewards
from posttrain.rollout.room import check_room
from posttrain.rollout.schedule import GivenOrder, PromptOrder, make_schedule
from posttrain.rollout.vllm_client import ServerFacts
from posttrain.scoring import Scorer

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset
    from torch.utils.data import DataLoader
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

    from posttrain.trainer import PostTrainer

_ROWS_LOOKED_AT = 1000
# Evaluation draws from seeds of its own.
_EVALUATION = 1_000_003


class SampledMethod(Method):
    """A method that trains on what its policy writes."""

    config: PolicyConfig
    scorer: Scorer
    makes_batches = True

    def __init__(self, config: PolicyConfig):
        super().__init__(config)
        self.train_rollouts: TrainRollouts | None = None
        self.server: ServerFacts | None = None
        self.policy: Policy | None = None
        self._done: Callable[[], None] | None = None

    # -- for policy.py to state

    def complete_generation(
        self,
        trainer: PostTrainer,
        rollouts: list[Rollout],
        own: list[tuple[list[int], PackedBatch]],
        in_evaluation: bool,
    ) -> tuple[list[PackedBatch], dict[str, float], np.ndarray]:
        """What the loss needs beside the tokens.

        Args:
            trainer: of the run.
            rollouts: C completions, of all processes.
            own: of this process: which of them stand in a batch, and the batch.
            in_evaluation: they are of an evaluation.

        Returns:
            This process's batches, complete; metrics of the generation; its advantages (C,).
        """
        raise NotImplementedError

    def score(self, trainer: PostTrainer, batch: PackedBatch) -> torch.Tensor:
        """(N,) log-probs of the targets under the policy as it is now."""
        raise NotImplementedError

    # -- set-up

    def check(self, arguments: TrainingArguments, datasets: Sequence[Dataset]) -> None:
        config = self.config
        self.schedule = make_schedule(
            config.num_generations,
            arguments.per_device_train_batch_size,
            arguments.gradient_accumulation_steps,
            config.generation_batch_size,
            config.steps_per_generation,
            config.num_iterations,
            arguments.world_size,
            arguments.process_index,
        )
        self.accumulation = arguments.gradient_accumulation_steps
        self.server = check_engine(config)
        own_room = config.vllm_max_model_length if config.use_vllm else None
        self._longest = check_room(config, datasets, own_room if self.server is None else self.server.longest)
        needs = required_columns(config)  # again here, for data of the hub
        for dataset in datasets:
            is_stream = isinstance(dataset, Stream)
            texts = [row["columns"] for row in dataset.head] if is_stream else dataset[:_ROWS_LOOKED_AT]["columns"]
            columns = {name for text in texts for name in json.loads(text)}
            check_columns(needs, columns, config.dataset_name or "datasets")

    def load(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        self.tokenizer = tokenizer
        return super().load(tokenizer)

    def setup(
        self, model: PreTrainedModel, scorer: Any, datasets: Sequence[Dataset], arguments: TrainingArguments
    ) -> list[Dataset]:
        self.engine = make_engine(self.config, model, self.scorer, arguments, self._longest)
        self.rewards: Rewards = build_rewards(self.config, arguments.device)
        self.observer = Observer(self.config, self.rewards, self.tokenizer)
        return list(datasets)

    def close(self) -> None:
        if self._done is not None:
            self._done()
        if hasattr(self, "rewards"):
            self.rewards.close()

    def depends_on(self) -> list[str]:
        return [*super().depends_on(), *(file["sha256"] for file in self._reward_files.values())]

    def made_from(self) -> dict[str, Any]:
        return super().made_from() | {
            "rewards": {"sources": self.config.reward_sources(), "files": self._reward_files},
            **({} if self.server is None else {"vllm_server": dataclasses.asdict(self.server)}),
        }

    @functools.cached_property
    def _reward_files(self) -> dict[str, dict[str, Any]]:
        return reward_files(self.config)

    # -- rollouts

    def loader(self, trainer: PostTrainer, rows: Dataset, in_evaluation: bool) -> DataLoader[PackedBatch]:
        arguments, config = trainer.args, self.config
        if self.policy is None:  # the trainer asks for its first batches before it spreads the weights
            self.policy, self._done = policy_for(config, self.engine, trainer, functools.partial(self.score, trainer))
        collector = self._collector(trainer, rows, in_evaluation)
        complete = functools.partial(self.complete_generation, trainer, in_evaluation=in_evaluation)
        rollouts: EvalRollouts | TrainRollouts
        if in_evaluation:
            observe = self.observer.evaluation(trainer, len(rows) * collector.num_generations)
            together = arguments.per_device_eval_batch_size * arguments.world_size
            rollouts = EvalRollouts(collector, max(1, together // collector.num_generations), complete, observe)
        else:
            rollouts = self.train_rollouts = TrainRollouts(
                collector,
                self.schedule,
                self._order(rows, arguments),
                complete,
                functools.partial(self.observer.generation, trainer, rows),
                self._without_variance,
                config.mask_truncated_completions,
                config.max_resampling_rounds if config.dynamic_sampling else 0,
            )
        return torch.utils.data.DataLoader(rollouts, batch_size=1, collate_fn=_the_one)

    def _order(self, rows: Dataset | Stream, arguments: TrainingArguments) -> PromptOrder | GivenOrder:
        if isinstance(rows, Stream):
            batches = arguments.max_steps * arguments.gradient_accumulation_steps
            generations = -(-batches // self.schedule.batches_per_generation)
            return GivenOrder(generations * self.schedule.num_prompts)
        return PromptOrder(len(rows), _order_seed(arguments) if self.config.shuffle_dataset else None)

    def _collector(self, trainer: PostTrainer, rows: Dataset, in_evaluation: bool) -> Collector:
        config = self.config
        assert self.policy is not None
        return Collector(
            engine=self.engine,
            policy=self.policy,
            rewards=self.rewards,
            tokenizer=self.tokenizer,
            rows=rows,
            sampling=sampling_of(config, trainer.model, self.tokenizer, in_evaluation),
            num_generations=self._group_size(in_evaluation),
            seed=trainer.args.seed + (_EVALUATION if in_evaluation else 0),
            at_a_time=config.rollout_batch_size,
            share=self.schedule.generated_here,
            gather=gather_object,
            autocast=functools.partial(_autocast, trainer.args),
        )

    def _group_size(self, in_evaluation: bool) -> int:
        config = self.config
        return (config.num_generations_eval if in_evaluation else None) or config.num_generations

    def _without_variance(self, rewards: np.ndarray) -> np.ndarray:
        aggregation = getattr(self.config, "multi_objective_aggregation", "sum_then_normalize")
        table = torch.from_numpy(rewards)
        return zero_variance_groups(table, self.config.num_generations, self.config.reward_weights, aggregation).numpy()

    @property
    def last_completions(self) -> pa.Table | None:
        """Those that were written last, for people to read (completions_table)."""
        return self.observer.last_completions

    def finish_metrics(self, values: dict[str, float]) -> dict[str, float]:
        return without_rare(values)

    # -- state

    def state_dict(self) -> dict[str, Any]:
        assert self.train_rollouts is not None
        state = {"rollouts": self.train_rollouts.state_dict(), "schedule": dataclasses.asdict(self.schedule)}
        return state | {"rewards": self.rewards.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert self.train_rollouts is not None
        now = dataclasses.asdict(self.schedule)
        if state["schedule"] != now:
            raise UserError(
                f"--resume_from_checkpoint: the checkpoint holds rollouts made for {state['schedule']}, and this run "
                f"has {now}; take the same number of processes and batch sizes, or start anew"
            )
        self.load_sampling_state(state)

    def sampling_state(self) -> dict[str, Any] | None:
        if not self.config.use_vllm:
            return None
        assert self.train_rollouts is not None
        return {"rollouts": self.train_rollouts.state_dict(), "rewards": self.rewards.state_dict()}

    def load_sampling_state(self, state: dict[str, Any]) -> None:
        assert self.train_rollouts is not None
        self.train_rollouts.load_state_dict(state["rollouts"])
        self.rewards.load_state_dict(state["rewards"])
        self.observer.go_on()


def _order_seed(arguments: TrainingArguments) -> int:
    return arguments.seed if arguments.data_seed is None else arguments.data_seed


def _autocast(arguments: TrainingArguments) -> contextlib.AbstractContextManager[Any]:
    half = mixed_precision(arguments)
    return contextlib.nullcontext() if half is None else torch.autocast(arguments.device.type, half)


def _the_one(batches: list[PackedBatch]) -> PackedBatch:
    return batches[0]
