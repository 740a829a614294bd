# ruff: noqa: RUF009 (flag() returns a dataclass field)
"""The methods: what each adds to the common flags. A new method is one class and one row of METHODS."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from posttrain.config.common import CommonConfig
from posttrain.config.fields import flag
from posttrain.config.policy import SYNC_WITH_ADAPTERS, GRPOConfig, RLOOConfig

LOSSES_WITH_DIVERGENCE = ["sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"]
DPO_LOSSES = [
    *LOSSES_WITH_DIVERGENCE,
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
]
DIVERGENCES = ["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]


@dataclass(kw_only=True)
class LengthFlags:
    """Length and layout"""

    max_length: int | None = flag(1024, "Longest row in tokens; none: no limit.", low=1)
    truncation_mode: str = flag("keep_start", "Which end of a longer row stays.", choices=("keep_start", "keep_end"))
    padding_free: bool = flag(False, "Rows side by side, without padding.")
    pad_to_multiple_of: int | str | None = flag("auto", "Pad rows to a multiple of this length.")


@dataclass(kw_only=True)
class SFTFlags:
    """Supervised fine-tuning"""

    learning_rate: float = flag(2e-5, "Step size of the optimizer at its peak.", low=0)
    loss_type: str = flag("nll", "Loss of a token: nll (negative log-likelihood) or dft.", choices=("nll", "dft"))
    packing: bool = flag(False, "Fill each row with several documents (they never see each other).")
    packing_strategy: str = flag("bfd", "How documents are fitted into rows.", choices=("bfd", "bfd_split", "wrapped"))
    eval_packing: bool | None = flag(None, "Pack the rows of the evaluation too; unset: as packing.")
    completion_only_loss: bool | None = flag(None, "Train the completion alone; unset: where rows have a prompt.")
    assistant_only_loss: bool = flag(False, "Train the assistant's messages alone.")
    dataset_text_field: str = flag("text", "Column that holds plain text.")
    dataset_kwargs: dict[str, Any] | None = flag(None, "Only skip_prepare_dataset=true, for tokenised rows.")
    shuffle_dataset: bool = flag(False, "Shuffle the rows before they are packed.")


@dataclass(kw_only=True)
class DPOFlags:
    """Direct preference optimisation"""

    learning_rate: float = flag(1e-6, "Step size of the optimizer at its peak.", low=0)
    loss_type: list[str] = flag(["sigmoid"], "One loss, or several that are added up.", choices=DPO_LOSSES)
    loss_weights: list[float] | None = flag(None, "Weight of each loss; unset: 1 each.")
    beta: float = flag(0.1, "How strongly the policy is held to the reference.", low=0)
    label_smoothing: float = flag(
        0.0, "Chance that a pair is labelled the wrong way round (exo_pair, robust, aot, aot_unpaired).", low=0, high=1
    )
    f_divergence_type: str = flag("reverse_kl", "Divergence from the reference.", choices=DIVERGENCES)
    f_alpha_divergence_coef: float = flag(0.5, "Alpha of alpha_divergence.")
    discopop_tau: float = flag(0.05, "Temperature of discopop's blend.", low=0)
    ld_alpha: float | None = flag(None, "Weight of the tokens beyond the shorter answer (LD-DPO).", low=0, high=1)
    use_weighting: bool = flag(False, "Weight pairs by how likely the policy is to write them (WPO).")
    disable_dropout: bool = flag(True, "No dropout in policy and reference.")
    ref_model_name_or_path: str | None = flag(None, "The reference: a folder or a hub id; unset: the model itself.")
    precompute_ref_log_probs: bool = flag(False, "Run the reference once, before training.")
    precompute_ref_batch_size: int | None = flag(None, "Pairs per batch for that; unset: as in training.", low=1)
    sync_ref_model: bool = flag(False, "Move the reference towards the policy now and then (TR-DPO).")
    ref_model_mixup_alpha: float = flag(0.6, "Share of the policy in the moved reference.", low=0, high=1)
    ref_model_sync_steps: int = flag(512, "Steps between two moves.", low=1)


@dataclass(kw_only=True)
class RewardFlags:
    """Reward modeling"""

    learning_rate: float = flag(1e-4, "Step size of the optimizer at its peak.", low=0)
    max_length: int | None = flag(
        1024, "Longest side of a pair in tokens; a pair with a longer one is left out; none: no limit.", low=1
    )
    center_rewards_coefficient: float | None = flag(
        None, "Weight of a term that keeps the two rewards of a pair around zero, such as 0.01.", low=0
    )
    disable_dropout: bool = flag(True, "No dropout in the model.")
    pad_to_multiple_of: int | str | None = flag("auto", "Pad rows to a multiple of this length.")
    lora_task_type: str = flag("SEQ_CLS", "Kind of model for peft: one with a score.", choices=("CAUSAL_LM", "SEQ_CLS"))


@dataclass(kw_only=True)
class SFTConfig(SFTFlags, LengthFlags, CommonConfig):
    """Everything that a run of supervised fine-tuning is told."""

    method: ClassVar[str] = "sft"
    data_kind: ClassVar[str] = "sft"
    summary: ClassVar[str] = "supervised fine-tuning on texts, conversations or prompts with completions"

    def problems(self) -> Iterator[str]:
        """The common rules, and those of SFT."""
        yield from super().problems()
        if (self.packing or self.eval_packing) and self.max_length is None:
            yield "packing fills rows of max_length tokens; give max_length a number"
        unknown = sorted(set(self.dataset_kwargs or {}) - {"skip_prepare_dataset"})
        if unknown:
            yield f"dataset_kwargs: {', '.join(unknown)} means nothing here; tokenised rows are known by their columns"


@dataclass(kw_only=True)
class DPOConfig(DPOFlags, LengthFlags, CommonConfig):
    """Everything that a run of direct preference optimisation is told."""

    method: ClassVar[str] = "dpo"
    data_kind: ClassVar[str] = "preference"
    summary: ClassVar[str] = "direct preference optimisation on pairs of a chosen and a rejected answer"

    def problems(self) -> Iterator[str]:
        """The common rules, and those of DPO."""
        yield from super().problems()
        losses = set(self.loss_type)
        if not losses:
            yield "loss_type is empty; name at least one loss, such as sigmoid"
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            yield f"loss_weights has {len(self.loss_weights)} numbers for {len(self.loss_type)} losses; give one each"
        if self.beta == 0:
            yield "beta is 0, which leaves nothing to optimise; give a number above 0, such as 0.1"
        if "exo_pair" in losses and self.label_smoothing == 0:
            yield "loss_type exo_pair needs label_smoothing above 0, such as 0.001"
        if "robust" in losses and self.label_smoothing >= 0.5:
            yield f"loss_type robust needs label_smoothing below 0.5, not {self.label_smoothing:g}"
        if "discopop" in losses and self.discopop_tau == 0:
            yield "loss_type discopop needs discopop_tau above 0, such as 0.05"
        without = sorted(losses.difference(LOSSES_WITH_DIVERGENCE))
        if self.f_divergence_type != "reverse_kl" and without:
            yield f"loss_type {', '.join(without)} takes no f_divergence_type but reverse_kl; change one of them"
        if self.use_weighting and losses & {"aot", "aot_unpaired"}:
            yield "use_weighting weights pairs, and aot compares sorted batches; leave one of them out"
        if self.sync_ref_model and self.precompute_ref_log_probs:
            yield "precompute_ref_log_probs needs a reference that stays, and sync_ref_model moves it; leave one out"
        if self.sync_ref_model and self.use_peft:
            yield SYNC_WITH_ADAPTERS


@dataclass(kw_only=True)
class RewardConfig(RewardFlags, CommonConfig):
    """Everything that a run of reward modeling is told."""

    method: ClassVar[str] = "reward"
    data_kind: ClassVar[str] = "reward"
    summary: ClassVar[str] = "a reward model from pairs of a chosen and a rejected answer"

    def problems(self) -> Iterator[str]:
        """The common rules, and those of reward models."""
        yield from super().problems()
        if self.router_aux_loss_coef is not None:
            yield "router_aux_loss_coef: transformers' classifiers compute no router loss; leave it out"
        if self.lora_task_type != "SEQ_CLS":
            yield "lora_task_type CAUSAL_LM would lose the score head of the reward model; it is SEQ_CLS here"


METHODS: dict[str, type[CommonConfig]] = {
    "sft": SFTConfig,
    "reward": RewardConfig,
    "dpo": DPOConfig,
    "grpo": GRPOConfig,
    "rloo": RLOOConfig,
}
