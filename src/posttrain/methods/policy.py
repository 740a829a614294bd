"""What GRPO and RLOO share: prompts become completions with rewards, rewards become advantages, and batches of both.

A method of this kind states how rewards become advantages, and its loss.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from accelerate.utils import gather_object

from posttrain.batch import PackedBatch
from posttrain.config import PolicyConfig
from posttrain.data.stream import Stream
from posttrain.errors import UserError
from posttrain.logprobs import TokenStatistics
from posttrain.losses.advantages import Advantages, reward_statistics, zero_variance_groups
from posttrain.methods import Method
from posttrain.reference import Reference, SyncReference
from posttrain.rollout.collect import Collector, Rollout
from posttrain.rollout.completions import SHOWN, completions_table, show_completions, write_completions
from posttrain.rollout.engines import Policy, check_engine, make_engine, policy_for, sampling_of
from posttrain.rollout.loader import EvalRollouts, TrainRollouts, logprobs_told
from posttrain.rollout.metrics import as_loss, length_metrics
from posttrain.rollout.rewards.check import check_columns, required_columns, reward_files
from posttrain.rollout.rewards.table import Rewards, build_rewards
from posttrain.rollout.room import check_room
from posttrain.rollout.schedule import GivenOrder, PromptOrder, make_schedule
from posttrain.rollout.vllm_client import ServerFacts
from posttrain.scoring import Scorer
from posttrain.sharding import spreads_weights

if TYPE_CHECKING:
    from datasets import Dataset
    from torch.utils.data import DataLoader
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

    from posttrain.trainer import PostTrainer

logger = logging.getLogger(__name__)

_ROWS_LOOKED_AT = 1000
# Evaluation draws from seeds of its own.
_EVALUATION = 1_000_003
_UNDECIDED = "rewards/undecided_per_generation"


class PolicyMethod(Method):
    """A policy that learns from rewards of what it writes."""

    config: PolicyConfig
    needs_entropy_gradient = False
    kl_in_reward = False
    corrects_sampler = False  # whether the loss wants to know how far another engine was from the policy

    def __init__(self, config: PolicyConfig):
        super().__init__(config)
        self.reference: Reference | None = None
        self.train_rollouts: TrainRollouts | None = None
        self.server: ServerFacts | None = None
        self.policy: Policy | None = None
        self._done: Callable[[], None] | None = None
        self.last_completions: pa.Table | None = None
        self._trouble = np.zeros(3, dtype=np.int64)

    # -- for a method to state

    def advantages(self, rewards: torch.Tensor, num_generations: int, kl: torch.Tensor | None) -> Advantages:
        """How much better each completion of a generation was than expected.

        Args:
            rewards: (C, R) of all ranks, NaN = no opinion.
            num_generations: G.
            kl: (C,) from `kl_of`.
        """
        raise NotImplementedError

    def kl_of(self, batch: PackedBatch, logprobs: torch.Tensor) -> torch.Tensor:
        """(C,) KL of each completion to the reference, for methods with `kl_in_reward`.

        Args:
            batch: with reference_logprobs.
            logprobs: (N,) of the targets under the policy that sampled them.
        """
        raise NotImplementedError

    def finish_batches(self, batches: list[PackedBatch], trainer: PostTrainer) -> list[PackedBatch]:
        """Called with this process's batches of a generation, complete but for what only this method wants."""
        return batches

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
        check_room(config, datasets, own_room if self.server is None else self.server.longest)
        needs = required_columns(config)  # again here, for data of the hub
        for dataset in datasets:
            is_stream = isinstance(dataset, Stream)
            texts = [row["columns"] for row in dataset.head] if is_stream else dataset[:_ROWS_LOOKED_AT]["columns"]
            columns = {name for text in texts for name in json.loads(text)}
            check_columns(needs, columns, config.dataset_name or "datasets")

    def load(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        self.tokenizer = tokenizer
        return super().load(tokenizer)

    def make_scorer(self, model: PreTrainedModel) -> Any:
        self.scorer: Scorer = super().make_scorer(model)
        return functools.partial(
            self.scorer, temperature=self.config.temperature, with_entropy_gradient=self.needs_entropy_gradient
        )

    def setup(
        self, model: PreTrainedModel, scorer: Any, datasets: Sequence[Dataset], arguments: TrainingArguments
    ) -> list[Dataset]:
        config, device = self.config, arguments.device
        self.engine = make_engine(config, model, self.scorer, arguments)
        if config.beta and config.use_peft:
            self.reference = Reference(self.scorer)
        elif config.beta:
            packed = config.attn_implementation is None
            self.reference = Reference.frozen_copy(model, device, packed, spreads_weights(arguments))
        self.rewards: Rewards = build_rewards(config, device)
        return list(datasets)

    def callbacks(self) -> list[TrainerCallback]:
        if not self.config.sync_ref_model:
            return []
        assert self.reference is not None
        return [SyncReference(self.reference, self.config.ref_model_mixup_alpha, self.config.ref_model_sync_steps)]

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
            self.policy, self._done = policy_for(config, self.engine, trainer, functools.partial(self._score, trainer))
        collector = self._collector(trainer, rows, in_evaluation)
        complete = functools.partial(self._complete, trainer, in_evaluation=in_evaluation)
        rollouts: EvalRollouts | TrainRollouts
        if in_evaluation:
            observe = functools.partial(self._observe_evaluation, trainer, len(rows) * collector.num_generations, [])
            together = arguments.per_device_eval_batch_size * arguments.world_size
            rollouts = EvalRollouts(collector, max(1, together // collector.num_generations), complete, observe)
        else:
            rollouts = self.train_rollouts = TrainRollouts(
                collector,
                self.schedule,
                self._order(rows, arguments),
                complete,
                functools.partial(self._observe, trainer, rows),
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
        )

    def _group_size(self, in_evaluation: bool) -> int:
        config = self.config
        return (config.num_generations_eval if in_evaluation else None) or config.num_generations

    def _without_variance(self, rewards: np.ndarray) -> np.ndarray:
        aggregation = getattr(self.config, "multi_objective_aggregation", "sum_then_normalize")
        table = torch.from_numpy(rewards)
        return zero_variance_groups(table, self.config.num_generations, self.config.reward_weights, aggregation).numpy()

    def _complete(
        self,
        trainer: PostTrainer,
        rollouts: list[Rollout],
        own: list[tuple[list[int], PackedBatch]],
        in_evaluation: bool,
    ) -> tuple[list[PackedBatch], dict[str, float], np.ndarray]:
        """What the loss needs beside the tokens: log-probs under the reference and under the policy as it was, and
        advantages, which are those of a completion among all of its generation."""
        # On-policy, unless the policy is updated before a generation has been used up.
        off_policy = not in_evaluation and self.accumulation % self.schedule.batches_per_generation != 0
        corrects = not in_evaluation and self.corrects_sampler
        batches: list[PackedBatch] = []
        kl: list[tuple[int, float, int]] = []  # place, sum over the targets, targets
        for places, batch in own:
            batch = batch.to(trainer.args.device)
            if self.reference is not None:
                batch = self.reference.complete(batch, trainer.model_wrapped, self.config.temperature)
            needs_kl = self.kl_in_reward and self.reference is not None
            if off_policy or needs_kl or corrects:
                drawn = None if in_evaluation else [rollouts[i] for i in places]  # there at another temperature
                logprobs = self._sampled_logprobs(trainer, batch, drawn)
                if needs_kl and not batch.is_filler:
                    lengths = torch.bincount(batch.sequence_ids, minlength=batch.num_sequences)
                    kl += zip(places, self.kl_of(batch, logprobs).tolist(), lengths.tolist(), strict=True)
                if off_policy:
                    batch = dataclasses.replace(batch, old_logprobs=logprobs)
                if corrects:
                    told = logprobs_told([rollouts[i] for i in places], batch)
                    batch = dataclasses.replace(batch, sampler_log_ratio=logprobs - told)
            batches.append(batch)
        kl = sorted(gather_object(kl))
        rewards = torch.from_numpy(np.stack([rollout.rewards for rollout in rollouts]))
        of_sequences = torch.tensor([value for _, value, _ in kl]) if kl else None
        advantages = self.advantages(rewards, self._group_size(in_evaluation), of_sequences)
        batches = [
            dataclasses.replace(batch, advantages=advantages.values[places].to(trainer.args.device))
            for (places, _), batch in zip(own, batches, strict=True)
        ]
        if not in_evaluation:
            batches = self.finish_batches(batches, trainer)
        metrics = length_metrics(rollouts) | advantages.statistics.metrics(self.rewards.names)
        metrics |= self._reward_trouble()
        if kl:
            metrics["kl"] = sum(value for _, value, _ in kl) / max(1, sum(length for _, _, length in kl))
        return [batch.to("cpu") for batch in batches], metrics, advantages.values.numpy()

    def _reward_trouble(self) -> dict[str, float]:
        """How often rewards failed since the last generation, cut texts short, and gave an answer up, over all
        processes."""
        now = np.array([self.rewards.num_failures, self.rewards.num_truncated, self.rewards.num_undecided])
        new, self._trouble = now - self._trouble, now
        failures, truncated, undecided = np.sum(gather_object([new]), axis=0).tolist()
        return {
            "rewards/failures_per_generation": float(failures),
            "rewards/truncated_per_generation": float(truncated),
            _UNDECIDED: float(undecided),
        }

    def finish_metrics(self, values: dict[str, float]) -> dict[str, float]:
        # Rare, and nothing where no mathematics is graded; counted on every rank, so that all know the same names.
        return {name: value for name, value in values.items() if name != _UNDECIDED or value}

    def _sampled_logprobs(
        self, trainer: PostTrainer, batch: PackedBatch, rollouts: list[Rollout] | None
    ) -> torch.Tensor:
        """(N,) log-probs of the targets under the policy that sampled them. In full precision those of posttrain's own
        sampler are those of a forward pass; in half, and of another sampler, a forward pass as in training keeps the
        difference between the two out of the ratios."""
        is_exact = trainer.model.dtype == torch.float32 and not (trainer.args.bf16 or trainer.args.fp16)
        if rollouts is not None and is_exact and not self.config.use_vllm:
            return logprobs_told(rollouts, batch)
        return self._score(trainer, batch)

    def _score(self, trainer: PostTrainer, batch: PackedBatch) -> torch.Tensor:
        return self.score_as_sampled(trainer, batch).logprobs

    @torch.no_grad()
    def score_as_sampled(self, trainer: PostTrainer, batch: PackedBatch) -> TokenStatistics:
        """A forward pass of the policy as it is now, without dropout."""
        was_training = trainer.model_wrapped.training
        trainer.model_wrapped.eval()
        statistics = self.scorer(trainer.model_wrapped, batch, self.config.temperature)
        trainer.model_wrapped.train(was_training)
        return statistics

    def _observe(
        self,
        trainer: PostTrainer,
        rows: Dataset,
        rollouts: list[Rollout],
        advantages: np.ndarray,
        metrics: dict[str, float],
    ) -> None:
        trainer.count(as_loss(metrics, trainer.args.device))
        if self.config.log_completions and trainer.is_world_process_zero():
            names, config, step = self.rewards.names, self.config, trainer.state.global_step + 1
            table = completions_table(step, rollouts, advantages, names, rows, self.tokenizer)
            folder = Path(trainer.args.output_dir) / "completions"
            self.last_completions = write_completions(table, self.last_completions, folder)
            number = SHOWN if config.num_completions_to_print is None else config.num_completions_to_print
            show_completions(table, names, number, config.log_unique_prompts)

    def _observe_evaluation(
        self,
        trainer: PostTrainer,
        number: int,
        seen: list[Rollout],
        rollouts: list[Rollout],
        advantages: np.ndarray,
        metrics: dict[str, float],
    ) -> None:
        """Of completions and rewards, the figures of the whole evaluation, however it was cut into batches; of the
        others the mean over completions."""
        described = self._described(rollouts)
        others = {name: value for name, value in metrics.items() if name not in described}
        trainer.count(as_loss(others, trainer.args.device, len(rollouts)))
        seen += rollouts
        if len(seen) == number:
            trainer.count(as_loss(self._described(seen), trainer.args.device))

    def _described(self, rollouts: list[Rollout]) -> dict[str, float]:
        rewards = torch.from_numpy(np.stack([rollout.rewards for rollout in rollouts]))
        statistics = reward_statistics(rewards, self.config.reward_weights)
        return length_metrics(rollouts) | statistics.metrics(self.rewards.names)

    # -- state

    def state_dict(self) -> dict[str, Any]:
        assert self.train_rollouts is not None
        state = {"rollouts": self.train_rollouts.state_dict(), "schedule": dataclasses.asdict(self.schedule)}
        state["rewards"] = self.rewards.state_dict()
        return state | (self.reference.state_dict() if self.reference and self.config.sync_ref_model else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert self.train_rollouts is not None
        now = dataclasses.asdict(self.schedule)
        if state["schedule"] != now:
            raise UserError(
                f"--resume_from_checkpoint: the checkpoint holds rollouts made for {state['schedule']}, and this run "
                f"has {now}; take the same number of processes and batch sizes, or start anew"
            )
        self.load_sampling_state(state)
        if self.reference and self.config.sync_ref_model:
            self.reference.load_state_dict(state)

    def sampling_state(self) -> dict[str, Any] | None:
        if not self.config.use_vllm:
            return None
        assert self.train_rollouts is not None
        return {"rollouts": self.train_rollouts.state_dict(), "rewards": self.rewards.state_dict()}

    def load_sampling_state(self, state: dict[str, Any]) -> None:
        assert self.train_rollouts is not None
        self.train_rollouts.load_state_dict(state["rollouts"])
        self.rewards.load_state_dict(state["rewards"])
        self._trouble[0] = self.rewards.num_failures  # which earlier lines have told


def _order_seed(arguments: TrainingArguments) -> int:
    return arguments.seed if arguments.data_seed is None else arguments.data_seed


def _the_one(batches: list[PackedBatch]) -> PackedBatch:
    return batches[0]
