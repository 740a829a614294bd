"""What a prediction is made of: flags, device, the model's shape, rows and batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from posttrain.config import CommonConfig, LaunchOptions, PolicyConfig
from posttrain.config.geometry import steps_of_generation
from posttrain.planning.batches import Steps, steps_of_rows
from posttrain.planning.devices import Device, device_of
from posttrain.planning.generations import steps_of_prompts
from posttrain.planning.lengths import Rows, rows_of
from posttrain.planning.memory import Setting
from posttrain.planning.settings import Decided, decide
from posttrain.planning.shape import ModelShape, shape_of, size_of_other

if TYPE_CHECKING:
    from transformers import TrainingArguments

MOST_READ = 20_000


@dataclass(frozen=True)
class Case:
    """All that a prediction is made of; a probe changes the length of completions.

    Args:
        config, arguments, decided, device: of the run.
        shape: of the policy.
        rows, evaluation: to train and evaluate on.
        setting: of its memory.
        reward_parameters: of reward models.
        assumptions: what was not known.
    """

    config: CommonConfig
    arguments: TrainingArguments
    decided: Decided
    device: Device
    shape: ModelShape
    rows: Rows
    evaluation: Rows | None
    setting: Setting
    reward_parameters: int
    assumptions: tuple[str, ...]

    @property
    def samples(self) -> bool:
        return isinstance(self.config, PolicyConfig)

    @property
    def steps_of_generation(self) -> int:
        config: Any = self.config
        return steps_of_generation(
            config.num_generations,
            self.arguments.per_device_train_batch_size,
            self.arguments.gradient_accumulation_steps,
            config.generation_batch_size,
            config.steps_per_generation,
            self.decided.processes,
        )

    def steps(self, completion: float) -> Steps:
        """Steps and micro-batches; completions of so many tokens."""
        rows, processes = self.rows, self.decided.processes
        if not self.samples:
            padded = not self.shape.by_segments
            return steps_of_rows(self.arguments, rows.lengths, rows.num_rows, rows.is_sampled, processes, padded)
        config: Any = self.config
        tokens, generation = rows.lengths.tokens, self.steps_of_generation
        return steps_of_prompts(self.arguments, config, tokens, rows.num_rows, completion, processes, generation)


def case_of(
    config: CommonConfig,
    launch: LaunchOptions,
    gpu: str | None = None,
    memory_gib: float | None = None,
    most_rows: int = MOST_READ,
    tokenizer: Any = None,
) -> Case:
    """What there is to know; arguments as for `plan`."""
    from posttrain.data.tokenizer import load_tokenizer
    from posttrain.training import training_arguments

    arguments = training_arguments(config)
    device = device_of(config, gpu, memory_gib)
    decided = decide(config, launch, arguments, device)
    shape = shape_of(config, decided.autocast, device.kind == "cuda")
    tokenizer = tokenizer or load_tokenizer(config)
    rows = rows_of(config, tokenizer, config.dataset_train_split, most_rows)
    assert rows is not None
    evaluates = config.eval_strategy not in (None, "no") or config.do_eval
    evaluation = rows_of(config, tokenizer, config.dataset_test_split, most_rows) if evaluates else None
    assumptions: list[str] = []
    reference = _reference_bytes(config, shape)
    parameters, reward_bytes = _reward_models(config, shape, assumptions)
    setting = Setting(
        on_gpu=device.kind == "cuda",
        recomputed=decided.recomputed,
        micro_batches=arguments.gradient_accumulation_steps,
        processes=decided.processes,
        sharded=decided.sharded,
        sharder=decided.sharder,
        optimizer=str(getattr(arguments.optim, "value", arguments.optim)),
        half=decided.autocast is not None,
        reference_bytes=reference,
        reward_bytes=reward_bytes,
        kept_in_cpu=config.activation_offloading and device.kind == "cuda",
        compiled=config.compiles,
        recompute=config.recompute,
        every=int((config.gradient_checkpointing_kwargs or {}).get("every_n_layers", 1)),
    )
    return Case(config, arguments, decided, device, shape, rows, evaluation, setting, parameters, tuple(assumptions))


def _reference_bytes(config: Any, shape: ModelShape) -> float:
    if config.method == "dpo":
        has_own = not (config.use_peft or config.precompute_ref_log_probs) or config.ref_model_name_or_path
        if config.precompute_ref_log_probs or not has_own:
            return 0.0
        if config.ref_model_name_or_path:
            return float(size_of_other(config.ref_model_name_or_path, shape)[0] * shape.number)
        return float(shape.weight_bytes)
    has_reference = config.method in ("grpo", "rloo") and config.beta and not config.use_peft
    return float(shape.weight_bytes) if has_reference else 0.0


def _reward_models(config: CommonConfig, shape: ModelShape, assumptions: list[str]) -> tuple[int, float]:
    """Parameters and bytes of the models that score."""
    if not isinstance(config, PolicyConfig):
        return 0, 0.0
    from posttrain.rollout.rewards.sources import reward_sources

    count, size = 0, 0.0
    for source in reward_sources(config):
        if source.kind in ("model", "classifier"):
            own, held, is_known = size_of_other(source.target, shape)
            count, size = count + own, size + held
            if not is_known:
                assumptions.append(f"{source.target} has no config.json here: taken to be as large as the policy")
    return count, size
