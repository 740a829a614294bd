# ruff: noqa: RUF009 (flag() returns a dataclass field)
"""GRPO and RLOO: how prompts are sampled from, what both losses share, and what each adds."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from posttrain.config.common import CommonConfig
from posttrain.config.fields import flag
from posttrain.config.generation_engines import (
    GenerationEngineFlags,
    VLLMCorrectionFlags,
    correction_problems,
    engine_problems,
)
from posttrain.config.rewards import RewardSourceFlags

GRPO_LOSSES = ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo", "luspo"]
SYNC_WITH_ADAPTERS = (
    "sync_ref_model moves the weights of a reference towards those of the policy, and use_peft trains adapters beside "
    "them; leave out one of the two"
)


@dataclass(kw_only=True)
class GenerationFlags:
    """Generation"""

    num_generations: int = flag(8, "Completions sampled for each prompt.", low=2)
    max_completion_length: int = flag(512, "Where a completion is cut off, in tokens.", low=1)
    temperature: float = flag(1.0, "Divides the logits; below 1 sharper, above 1 flatter.", low=0)
    top_p: float = flag(1.0, "Keep the likeliest tokens that have this probability together.", low=0, high=1)
    top_k: int = flag(0, "Keep this many of the likeliest tokens; 0: all.", low=0)
    min_p: float | None = flag(None, "Keep tokens that have this share of the likeliest one's.", low=0, high=1)
    repetition_penalty: float = flag(1.0, "Divides the logits of tokens that stand in the text already.", low=0)
    max_prompt_tokens: int | None = flag(
        None, "Longest prompt in tokens; unset: any that the model has room for.", low=1
    )
    long_prompts: str = flag(
        "error",
        "What happens to longer ones: drop, truncate_left (the beginning goes) or error.",
        choices=("drop", "truncate_left", "error"),
    )
    chat_template_kwargs: dict[str, Any] | None = flag(None, "Further variables for the chat template.")
    num_generations_eval: int | None = flag(None, "num_generations in evaluation; unset: the same.", low=1)
    eval_temperature: float | None = flag(None, "temperature in evaluation (0: greedy); unset: the same.", low=0)
    eval_top_p: float | None = flag(None, "top_p in evaluation; unset: the same.", low=0, high=1)
    eval_top_k: int | None = flag(None, "top_k in evaluation; unset: the same.", low=0)
    eval_min_p: float | None = flag(None, "min_p in evaluation; unset: the same.", low=0, high=1)
    eval_repetition_penalty: float | None = flag(None, "repetition_penalty in evaluation; unset: the same.", low=0)
    eval_max_completion_length: int | None = flag(None, "max_completion_length in evaluation; unset: the same.", low=1)


@dataclass(kw_only=True)
class RolloutFlags:
    """Rollouts"""

    generation_batch_size: int | None = flag(
        None, "Completions sampled at a time, over all processes; unset: those of one optimizer step.", low=1
    )
    steps_per_generation: int | None = flag(
        None, "Micro-batches that they are cut into; unset: gradient_accumulation_steps.", low=1
    )
    num_iterations: int = flag(1, "How often they are trained on.", low=1)
    rollout_batch_size: int = flag(
        512, "Completions that a process generates at a time, while the rewards of those before are computed.", low=1
    )
    shuffle_dataset: bool | None = flag(True, "Take the prompts in a random order; none: as false.")
    mask_truncated_completions: bool = flag(False, "Do not train on completions that were cut off.")
    dynamic_sampling: bool = flag(False, "Replace groups whose rewards are all the same by new prompts (DAPO).")
    max_resampling_rounds: int = flag(3, "How often that is tried before such groups are kept.", low=1)
    log_completions: bool = flag(
        False, "Write all completions that are trained on to parquet files beside the checkpoints, and show some."
    )
    num_completions_to_print: int | None = flag(None, "How many to show; unset: 4.", low=0)
    log_unique_prompts: bool = flag(False, "Of those shown, one a prompt.")
    pad_to_multiple_of: int | str | None = flag("auto", "Pad rows to a multiple of this length.")
    log_multimodal: bool = flag(True, "Log the images of completions.")


@dataclass(kw_only=True)
class PolicyFlags:
    """Policy and reference"""

    learning_rate: float = flag(1e-6, "Step size of the optimizer at its peak.", low=0)
    epsilon: float = flag(0.2, "How far below 1 the probability ratio counts.", low=0)
    epsilon_high: float | None = flag(None, "How far above 1 it counts; unset: as epsilon.", low=0)
    disable_dropout: bool = flag(False, "No dropout in the policy.")
    sync_ref_model: bool = flag(False, "Move the reference towards the policy now and then (TR-DPO).")
    ref_model_mixup_alpha: float = flag(0.6, "Share of the policy in the moved reference.", low=0, high=1)
    ref_model_sync_steps: int = flag(512, "Steps between two moves.", low=1)
    remove_unused_columns: bool | None = flag(False, "Drop columns that the model does not take.")


@dataclass(kw_only=True)
class GRPOFlags:
    """Group relative policy optimisation"""

    loss_type: str = flag("dapo", "How token losses are formed and added up.", choices=GRPO_LOSSES)
    beta: float = flag(0.0, "Weight of the KL divergence from the reference; 0: no reference is loaded.", low=0)
    kl_estimator: str = flag("k3", "Estimator of that divergence.", choices=("k1", "k2", "k3"))
    use_bias_correction_kl: bool = flag(True, "Weight the KL estimate by the probability ratio.")
    delta: float | None = flag(None, "Upper bound of the ratio where the advantage is negative (two-sided).", low=1)
    importance_sampling_level: str = flag(
        "token", "Probability ratios of tokens or of sequences.", choices=("token", "sequence")
    )
    scale_rewards: str = flag(
        "group",
        "Divide advantages by the standard deviation of: group, batch or none.",
        choices=("group", "batch", "none"),
        also={"true": "group", "false": "none"},
    )
    multi_objective_aggregation: str = flag(
        "sum_then_normalize",
        "How several rewards become one advantage.",
        choices=("sum_then_normalize", "normalize_then_sum"),
    )
    sapo_temperature_neg: float = flag(1.05, "Temperature of sapo where the advantage is negative.", low=0)
    sapo_temperature_pos: float = flag(1.0, "Temperature of sapo where it is not.", low=0)
    vespo_k_pos: float = flag(2.0, "k of vespo where the advantage is positive.", low=0)
    vespo_lambda_pos: float = flag(3.0, "Lambda of vespo where the advantage is positive.", low=0)
    vespo_k_neg: float = flag(3.0, "k of vespo where it is not.", low=0)
    vespo_lambda_neg: float = flag(2.0, "Lambda of vespo where it is not.", low=0)
    top_entropy_quantile: float = flag(
        1.0, "Train on this share of the tokens, the most uncertain ones.", low=0, high=1
    )
    entropy_coef: float = flag(0.0, "Weight of the entropy bonus.")
    use_adaptive_entropy: bool = flag(False, "Adapt entropy_coef so that the entropy stays at its target.")
    entropy_coef_min: float = flag(0.0, "Lower bound of the adapted weight.")
    entropy_coef_max: float = flag(1.0, "Upper bound of the adapted weight.")
    entropy_coef_delta: float = flag(0.005, "Change of the adapted weight at a step.", low=0)
    entropy_target: float = flag(0.2, "Entropy of a token that is aimed at, in nats.", low=0)
    off_policy_mask_threshold: float | None = flag(
        None,
        "Leave out completions with a negative advantage that are further than this from the policy, in nats.",
        low=0,
    )

    cast_lm_head_to_fp32: bool = flag(False, "Compute the output head in float32.")
    max_tool_calling_iterations: int | None = flag(None, "How often a completion may call tools.")
    log_completions_hub_repo: str | None = flag(None, "Hub data set for completions.")


@dataclass(kw_only=True)
class RLOOFlags:
    """REINFORCE leave-one-out"""

    num_generations: int = flag(2, "Completions sampled for each prompt.", low=2)
    beta: float = flag(0.05, "Weight of the KL divergence, which is taken from the reward.", low=0)
    kl_estimator: str = flag("k1", "Estimator of that divergence.", choices=("k1", "k3"))
    normalize_advantages: bool = flag(False, "Give the advantages of a batch mean 0 and standard deviation 1.")
    reward_clip_range: list[float] | None = flag(None, "Lowest and highest reward; what lies outside is clipped.")


@dataclass(kw_only=True)
class PolicyConfig(PolicyFlags, RolloutFlags, GenerationFlags, RewardSourceFlags, GenerationEngineFlags, CommonConfig):
    """What GRPO and RLOO have in common."""

    data_kind: ClassVar[str] = "prompts"
    beta: float

    def setting(self, name: str, in_evaluation: bool) -> Any:
        """The value of a sampling setting, in training or in evaluation."""
        own = getattr(self, f"eval_{name}") if in_evaluation else None
        return getattr(self, name) if own is None else own

    def problems(self) -> Iterator[str]:
        """The common rules, and those of sampling and rewards."""
        yield from super().problems()
        yield from self.reward_problems()
        yield from engine_problems(self)
        if self.temperature == 0:
            yield "temperature is 0, which gives the same completion every time; give a number above 0, such as 1"
        for name in ("top_p", "eval_top_p", "repetition_penalty", "eval_repetition_penalty"):
            if getattr(self, name) == 0:
                yield f"{name} is 0, which leaves no token to choose; leave it out"
        if self.long_prompts != "error" and self.max_prompt_tokens is None:
            yield f"long_prompts {self.long_prompts} needs to know what is long: give max_prompt_tokens"
        if self.generation_batch_size is not None and self.steps_per_generation is not None:
            yield "generation_batch_size and steps_per_generation say the same thing; give one of them"
        if self.auto_find_batch_size:
            yield "auto_find_batch_size would break groups of completions apart; lower per_device_train_batch_size"
        if self.sync_ref_model and self.beta == 0:
            yield "sync_ref_model moves a reference that beta 0 has no use for; give beta, or leave it out"
        if self.sync_ref_model and self.use_peft:
            yield SYNC_WITH_ADAPTERS
        for name in ("num_completions_to_print", "log_unique_prompts"):
            if getattr(self, name) and not self.log_completions:
                yield f"{name} without log_completions would do nothing; add log_completions"
        if self.train_sampling_strategy not in (None, "random"):
            yield (
                f"train_sampling_strategy {self.train_sampling_strategy} is for rows; prompts come in a random order, "
                "or with --no_shuffle_dataset in that of the data"
            )


@dataclass(kw_only=True)
class GRPOConfig(GRPOFlags, VLLMCorrectionFlags, PolicyConfig):
    """Everything that a run of group relative policy optimisation is told."""

    method: ClassVar[str] = "grpo"
    summary: ClassVar[str] = "reinforcement learning with advantages relative to a group of completions"

    def problems(self) -> Iterator[str]:
        """The common rules, and those of GRPO."""
        yield from super().problems()
        yield from correction_problems(self)
        if self.cast_lm_head_to_fp32:
            yield "cast_lm_head_to_fp32 is not available; load the model with dtype float32"
        if self.max_tool_calling_iterations is not None:
            yield "max_tool_calling_iterations is not available: completions call no tools; leave it out"
        if self.log_completions_hub_repo is not None:
            yield "log_completions_hub_repo is not available; log_completions writes files into the run's folder"
        if self.use_adaptive_entropy and self.entropy_coef_min > self.entropy_coef_max:
            yield "entropy_coef_min is above entropy_coef_max; exchange them"
        for name in ("sapo_temperature_neg", "sapo_temperature_pos"):
            if self.loss_type == "sapo" and getattr(self, name) == 0:
                yield f"{name} is 0, which the loss divides by; give a number above 0, such as 1"
        if self.top_entropy_quantile == 0:
            yield "top_entropy_quantile is 0, which leaves no token to train on; give a share such as 0.2"
        if self.kl_estimator != "k3" and self.beta == 0:
            yield f"kl_estimator {self.kl_estimator} has no use where beta is 0; give beta, or leave it out"


@dataclass(kw_only=True)
class RLOOConfig(RLOOFlags, PolicyConfig):
    """Everything that a run of REINFORCE leave-one-out is told."""

    method: ClassVar[str] = "rloo"
    summary: ClassVar[str] = "reinforcement learning with the other completions of a prompt as baseline"

    def problems(self) -> Iterator[str]:
        """The common rules, and those of RLOO."""
        yield from super().problems()
        clip = self.reward_clip_range
        if clip is not None and (len(clip) != 2 or clip[0] >= clip[1]):
            yield f"reward_clip_range is {clip}; give the lowest and the highest reward, such as -10 10"
