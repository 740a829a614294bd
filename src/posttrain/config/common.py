# ruff: noqa: RUF009 (flag() returns a dataclass field)
"""What every method is told: model, adapters, data, training, and the files of the run."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, ClassVar

from posttrain.config.fields import flag, flags_of
from posttrain.config.training import TrainingFlags
from posttrain.errors import UserError

LORA_FLAGS = [
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "lora_target_modules",
    "lora_target_parameters",
    "lora_modules_to_save",
    "lora_task_type",
    "use_rslora",
    "use_dora",
]
# transformers renamed two of its arguments in this version and warns about the old names from then on.
CHECKPOINTING_RENAMED_IN = (5, 23)
SECRETS = {"hub_token"}


@dataclass(kw_only=True)
class DatasetSource:
    """One dataset of a mixture."""

    path: str = flag(dataclasses.MISSING, "File, folder or hub id.")
    name: str | None = flag(None, "Configuration of a hub dataset.")
    data_dir: str | None = flag(None, "Folder within the dataset.")
    data_files: str | list[str] | dict[str, Any] | None = flag(None, "Files within the dataset.")
    split: str = flag("train", "Split to take.")
    columns: list[str] | None = flag(None, "Columns to keep; unset: all.")
    fraction: float | None = flag(None, "Share of the mixture; give it for all datasets or for none.", low=0)


@dataclass(kw_only=True)
class ModelFlags:
    """Model"""

    model_name_or_path: str | None = flag(None, "The model to train: a folder or a hub id.")
    model_revision: str = flag("main", "Branch, tag or commit of a hub model.")
    dtype: str | None = flag("float32", "Data type of the weights.", choices=("auto", "bfloat16", "float16", "float32"))
    attn_implementation: str | None = flag(None, "Attention of transformers to use; unset: posttrain's own.")
    trust_remote_code: bool = flag(False, "Run code that comes with a hub model.")
    model_init_kwargs: dict[str, Any] | None = flag(None, "Further arguments for from_pretrained.")
    router_aux_loss_coef: float | None = flag(None, "Weight of the load-balancing loss of a mixture of experts.")
    eos_token: str | None = flag(None, "Token that ends a turn, such as <|im_end|>; unset: the tokenizer's.")
    pad_token: str | None = flag(None, "Padding token; unset: the tokenizer's.")
    chat_template_path: str | None = flag(None, "Chat template: a .jinja file, or a folder or hub id that has one.")
    activation_offloading: bool = flag(False, "Keep the activations for the backward pass in CPU memory.")
    ignore_bias_buffers: bool = flag(False, "Keep boolean buffers out of DistributedDataParallel.")


@dataclass(kw_only=True)
class AdapterFlags:
    """LoRA and quantisation"""

    use_peft: bool = flag(False, "Train LoRA adapters, not the whole model.")
    lora_r: int = flag(16, "Rank of the adapters.", low=1)
    lora_alpha: int = flag(32, "Scale of the adapters, divided by the rank.", low=1)
    lora_dropout: float = flag(0.05, "Dropout before the adapters.", low=0, high=1)
    lora_target_modules: list[str] | None = flag(None, "Modules to adapt (or all-linear); unset: peft's choice.")
    lora_target_parameters: list[str] | None = flag(None, "Parameters to adapt that are no module's weight.")
    lora_modules_to_save: list[str] | None = flag(None, "Modules to train in full and to save with the adapters.")
    lora_task_type: str = flag("CAUSAL_LM", "Kind of model for peft.", choices=("CAUSAL_LM", "SEQ_CLS"))
    use_rslora: bool = flag(False, "Scale by the root of the rank (rsLoRA).")
    use_dora: bool = flag(False, "Adapt direction and magnitude apart (DoRA).")
    load_in_8bit: bool = flag(False, "Load the base weights in 8 bits (needs bitsandbytes and a GPU).")
    load_in_4bit: bool = flag(False, "Load the base weights in 4 bits (needs bitsandbytes and a GPU).")
    bnb_4bit_quant_type: str = flag("nf4", "4-bit number format.", choices=("fp4", "nf4"))
    use_bnb_nested_quant: bool = flag(False, "Quantise the quantisation constants too.")
    bnb_4bit_quant_storage: str | None = flag(None, "Data type that 4-bit weights are stored in.")


@dataclass(kw_only=True)
class DataFlags:
    """Data"""

    dataset_name: str | None = flag(None, "The rows: a file, a folder or a hub id.")
    dataset_config: str | None = flag(None, "Configuration of a hub dataset.")
    dataset_train_split: str = flag("train", "Split to train on.")
    dataset_test_split: str = flag("test", "Split to evaluate on.")
    dataset_streaming: bool = flag(False, "Refused for now: tokenised rows are kept in a file mapped into memory.")
    datasets: list[DatasetSource] = flag([], "A mixture of datasets, in a YAML file (or as JSON).")
    streaming: bool = flag(False, "Refused for now, as dataset_streaming.")
    test_split_size: float | None = flag(None, "Rows (share of all below 1) of the mixture to hold out.", low=0)
    dataset_num_proc: int | None = flag(None, "Without effect: rows are tokenised in batches, on all cores.", low=1)


@dataclass(kw_only=True)
class RunFlags:
    """Files of the run"""

    metrics_file: str | None = flag(None, "JSON file for the final metrics.")
    plots_file: str | None = flag(None, "CSV file for the training curve.")
    work_dir: str | None = flag(None, "Folder for checkpoints; unset: output_dir.")
    cache_dir: str | None = flag(None, "Folder for prepared rows; unset: $POSTTRAIN_CACHE or ~/.cache/posttrain.")


@dataclass(kw_only=True)
class CommonConfig(RunFlags, TrainingFlags, DataFlags, AdapterFlags, ModelFlags):
    """The flags that all methods share; a method's config adds its own.

    Attributes:
        explicit: The names that the user set, by flag or file.
    """

    method: ClassVar[str]
    data_kind: ClassVar[str]
    summary: ClassVar[str]
    explicit: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for old in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
            new = old.replace("gradient", "activation")
            if None not in (getattr(self, old), getattr(self, new)) and getattr(self, old) != getattr(self, new):
                raise UserError(f"{old} and {new} are two names of one thing and differ here; give one of them")
            setattr(self, old, getattr(self, new) if getattr(self, old) is None else getattr(self, old))
            setattr(self, new, None)

    def training_arguments(self, **overrides: Any) -> dict[str, Any]:
        """The keyword arguments for transformers.TrainingArguments, in the names of the installed version.

        Args:
            **overrides: Values that take the place of the config's, by flag name; None leaves transformers' default.

        Returns:
            Those that are not None.
        """
        values = {name: getattr(self, name) for name in flags_of(TrainingFlags)} | overrides
        new_names = tuple(int(part) for part in version("transformers").split(".")[:2]) >= CHECKPOINTING_RENAMED_IN
        for old in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
            new = old.replace("gradient", "activation")
            values[new if new_names else old] = values[old]
            del values[old if new_names else new]
        return {name: value for name, value in values.items() if value is not None}

    def to_mapping(self) -> dict[str, Any]:
        """The flags and their values as plain data that can be written to a file; secrets are left out."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in SECRETS | {"explicit"}}

    def problems(self) -> Iterator[str]:
        """What is wrong between flags, one message a mistake; a method's config adds its own rules."""
        if self.model_name_or_path is None:
            yield "model_name_or_path is missing: a model folder or a hub id, such as Qwen/Qwen2-0.5B"
        if self.dataset_name is None and not self.datasets:
            yield "dataset_name is missing: a file, a folder or a hub id, such as trl-lib/Capybara"
        if self.dataset_name is not None and self.datasets:
            yield "dataset_name and datasets both name the rows; give one of them"
        yield from self._data_problems()
        yield from self._model_problems()
        yield from self._training_problems()

    def validate(self, where: str = "") -> None:
        """Check the rules between flags.

        Args:
            where: Where the flags stand, for the message.

        Raises:
            UserError: With the first rule that is broken.
        """
        for problem in self.problems():
            raise UserError(f"{where}: {problem}" if where else problem)

    def _data_problems(self) -> Iterator[str]:
        with_fraction = [source.fraction is not None for source in self.datasets]
        if any(with_fraction) and not all(with_fraction):
            yield "datasets: fraction stands with some datasets only; give it for all of them or for none"
        for name in ("streaming", "dataset_streaming"):
            if getattr(self, name):
                yield (
                    f"{name} is not built yet: rows are read one by one and kept, tokenised, in a file mapped into "
                    "memory, so large data needs disk and no memory; leave it out, or take a part of the data"
                )
        size = self.test_split_size
        if size is not None and (size == 0 or (size > 1 and size % 1)):
            yield f"test_split_size is {size:g}; it must be a share below 1 or a whole number of rows"

    def _model_problems(self) -> Iterator[str]:
        if self.load_in_4bit and self.load_in_8bit:
            yield "load_in_4bit and load_in_8bit exclude each other; give one of them"
        if (self.load_in_4bit or self.load_in_8bit) and not self.use_peft:
            yield "quantised weights cannot be trained themselves; add use_peft to train adapters on them"
        unused = [name for name in LORA_FLAGS if name in self.explicit]
        if unused and "use_peft" not in self.explicit and not self.use_peft:
            yield f"{', '.join(unused)} without use_peft would do nothing; add use_peft, or leave it out"

    def _training_problems(self) -> Iterator[str]:
        evaluates = self.eval_strategy not in (None, "no")
        if self.fp16 and self.bf16:
            yield "fp16 and bf16 exclude each other; give one of them"
        if self.fp16_full_eval and self.bf16_full_eval:
            yield "fp16_full_eval and bf16_full_eval exclude each other; give one of them"
        if self.label_smoothing_factor:
            yield "label_smoothing_factor is not available here; leave it out (DPO has label_smoothing)"
        if self.average_tokens_across_devices is False:
            yield "average_tokens_across_devices cannot be switched off: a step always divides by its tokens everywhere"
        if self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy") and not evaluates:
            yield f"lr_scheduler_type {self.lr_scheduler_type} follows evaluations; set eval_strategy to steps or epoch"
        if self.dataloader_prefetch_factor is not None and not self.dataloader_num_workers:
            yield "dataloader_prefetch_factor needs dataloader_num_workers above 0"
        if self.logging_steps == 0 and self.logging_strategy in (None, "steps"):
            yield "logging_steps is 0; give a number of steps, or set logging_strategy to no"
        for name in ("logging_steps", "eval_steps", "save_steps"):
            steps = getattr(self, name)
            if steps is not None and steps > 1 and steps % 1:
                yield f"{name} is {steps:g}; it must be a share below 1 or a whole number of steps"
        if self.load_best_model_at_end:
            yield from self._best_model_problems(evaluates)

    def _best_model_problems(self, evaluates: bool) -> Iterator[str]:
        saving, evaluating = self.save_strategy or "steps", self.eval_strategy
        if not evaluates:
            yield "load_best_model_at_end needs evaluations; set eval_strategy to steps or epoch"
        elif saving not in ("best", evaluating):
            yield f"load_best_model_at_end needs save_strategy {evaluating} (as eval_strategy) or best, not {saving}"
        elif saving == "steps":
            save_steps, eval_steps = self.save_steps or 500, self.eval_steps or self.logging_steps
            ratio = save_steps / eval_steps
            if (save_steps < 1) != (eval_steps < 1) or abs(ratio - round(ratio)) > 1e-9:
                yield (
                    f"load_best_model_at_end needs save_steps ({save_steps:g}) to be a multiple of eval_steps"
                    f" ({eval_steps:g})"
                )
