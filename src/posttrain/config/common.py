# ruff: noqa: RUF009 (flag() returns a dataclass field)
"""What every method is told: model, adapters, data, training, and the files of the run."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from posttrain.config.effects import without_effect
from posttrain.config.fields import flag, flags_of
from posttrain.config.rules import has_new_checkpointing, training_problems
from posttrain.config.secrets import SECRETS, secret_problems
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
FOUR_BIT_FLAGS = ["bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage"]
# Flags that may name a place of this machine.
PATHS = ["model_name_or_path", "dataset_name", "chat_template_path", "output_dir", "work_dir", "cache_dir"]
PATHS += ["metrics_file", "plots_file", "provenance_file", "record_steps", "resume_from_checkpoint"]


def _without_tilde(name: str, value: Any) -> Any:
    """A path with the home folder put in, as a shell does it where it sees the tilde."""
    if not isinstance(value, str) or not value.startswith("~"):
        return value
    try:
        return str(Path(value).expanduser())
    except RuntimeError:
        raise UserError(f"{name}: {value}: this machine has no such home folder; write the path out") from None


@dataclass(kw_only=True)
class DatasetSource:
    """One dataset of a mixture.

    Datasets follow one another. With fractions, so many rows of each are taken that the shares are right and none is
    taken twice: all of the one that has the fewest for its share. Streamed, they come in turn, at every place in about
    those shares, until one of them has no more rows.
    """

    path: str = flag(dataclasses.MISSING, "File, folder or hub id; or json, csv, parquet, with data_files.")
    name: str | None = flag(None, "Configuration of a hub dataset.")
    revision: str | None = flag(None, "Branch, tag or commit of a hub dataset; unset: main.")
    data_dir: str | None = flag(None, "Folder within the dataset.")
    data_files: str | list[str] | dict[str, Any] | None = flag(None, "Files or patterns in it; a list, or by split.")
    split: str = flag("train", "Split to take, or part of it: train[:1000], train[10%:20%], train+test.")
    columns: list[str] | None = flag(None, "Columns to keep; unset: all.")
    fraction: float | None = flag(None, "Share of the mixture; give it for all datasets or for none.", low=0)
    seed: int | None = flag(None, "Take the rows of that share at random, by this seed; unset: the first ones.", low=0)


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
    activation_offloading: bool = flag(
        False, "Keep activations for the backward pass in CPU memory; without a GPU: does nothing."
    )
    recompute: str = flag(
        "layers",
        "What gradient checkpointing computes again: whole layers, or of them all but attention, or what is cheap, "
        "neither attention nor matrix products. Another value than layers switches it on.",
        choices=("layers", "all_but_attention", "elementwise"),
    )
    ignore_bias_buffers: bool = flag(False, "Keep boolean buffers out of DistributedDataParallel.")


@dataclass(kw_only=True)
class AdapterFlags:
    """LoRA and quantisation"""

    use_peft: bool = flag(False, "Train LoRA adapters, not the whole model.")
    lora_r: int = flag(16, "Rank of the adapters.", low=1)
    lora_alpha: int = flag(32, "Scale of the adapters, divided by the rank.", low=1)
    lora_dropout: float = flag(0.05, "Dropout before the adapters.", low=0, high=1)
    lora_target_modules: list[str] | None = flag(
        None, "Layers to adapt: names, an expression for names, or all-linear; unset: peft's choice."
    )
    lora_target_parameters: list[str] | None = flag(
        None, "Parameters of experts and the like, e.g. mlp.experts.gate_up_proj."
    )
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
    dataset_train_split: str = flag("train", "Split to train on, or part of it, such as train[:1000].")
    dataset_test_split: str = flag("test", "Split to evaluate on.")
    dataset_streaming: bool = flag(False, "Tokenise rows as they are read, and keep none on disk; needs max_steps.")
    datasets: list[DatasetSource] = flag(
        [], "Several, in a YAML file (or as JSON): path, name, data_dir, data_files, split, columns, fraction, seed."
    )
    streaming: bool = flag(False, "As dataset_streaming; the name that stands beside `datasets:`.")
    test_split_size: float | None = flag(
        None, "Rows (share of all below 1) to hold out at random, by the seed; with streaming the first ones.", low=0
    )
    dataset_num_proc: int | None = flag(
        None, "Processes that tokenise; unset: where rows are many, one a core, up to 16.", low=1
    )


@dataclass(kw_only=True)
class FaultFlags:
    """Faults"""

    max_nonfinite_steps: int = flag(
        10, "Steps in a row with a loss or gradient that is not finite; they are skipped, and then the run ends.", low=1
    )


@dataclass(kw_only=True)
class RunFlags:
    """Files of the run"""

    metrics_file: str | None = flag(None, "JSON file for the final metrics.")
    plots_file: str | None = flag(None, "CSV file for the training curve.")
    provenance_file: str | None = flag(
        None, "JSON file for what the model was made from, and where; unset: provenance.json in output_dir."
    )
    record_steps: str | None = flag(
        None, "JSON Lines file for loss, gradient norm and a digest of every tensor after each step, to compare runs."
    )
    work_dir: str | None = flag(None, "Folder for checkpoints; unset: output_dir.")
    cache_dir: str | None = flag(None, "Folder for prepared rows; unset: $POSTTRAIN_CACHE or ~/.cache/posttrain.")


@dataclass(kw_only=True)
class CommonConfig(RunFlags, FaultFlags, TrainingFlags, DataFlags, AdapterFlags, ModelFlags):
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
        for name in PATHS:
            setattr(self, name, _without_tilde(name, getattr(self, name, None)))
        for source in self.datasets:
            source.path = str(_without_tilde("datasets", source.path))

    def training_arguments(self, **overrides: Any) -> dict[str, Any]:
        """The keyword arguments for transformers.TrainingArguments, in the names of the installed version.

        Args:
            **overrides: Values that take the place of the config's, by flag name; None leaves transformers' default.

        Returns:
            Those that are not None, without the flags that change nothing here.
        """
        idle = without_effect(type(self))
        values = {name: getattr(self, name) for name in flags_of(TrainingFlags) if name not in idle} | overrides
        new_names = has_new_checkpointing()
        for old in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
            new = old.replace("gradient", "activation")
            values[new if new_names else old] = values[old]
            del values[old if new_names else new]
        return {name: value for name, value in values.items() if value is not None}

    @property
    def is_streamed(self) -> bool:
        """Whether rows to train on are read as they are needed, whichever of the two flags says so."""
        return self.dataset_streaming or self.streaming

    def recomputes_activations(self, on_gpu: bool) -> bool:
        """Whether gradient checkpointing is on: as its flag says, else where it is asked for by `recompute`, and on a
        GPU."""
        if self.gradient_checkpointing is None:
            return on_gpu or self.recompute != "layers"
        return self.gradient_checkpointing

    @property
    def compiles(self) -> bool:
        """Whether layers and head are compiled, whichever of the three flags says so."""
        asked = self.torch_compile or self.torch_compile_backend or self.torch_compile_mode
        return bool(asked) and self.torch_compile_backend != "no"

    def to_mapping(self) -> dict[str, Any]:
        """The flags and their values as plain data that can be written to a file; secrets are left out."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in SECRETS | {"explicit"}}

    def problems(self) -> Iterator[str]:
        """What is wrong between flags, one message a mistake; a method's config adds its own rules."""
        yield from secret_problems(self.to_mapping())
        if self.model_name_or_path is None:
            yield "model_name_or_path is missing: a model folder or a hub id, such as Qwen/Qwen2-0.5B"
        if self.dataset_name is None and not self.datasets:
            yield "dataset_name is missing: a file, a folder or a hub id, such as trl-lib/Capybara"
        if self.dataset_name is not None and self.datasets:
            yield "dataset_name and datasets both name the rows; give one of them"
        yield from self._data_problems()
        yield from self._model_problems()
        yield from training_problems(self)

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
        fractions = [source.fraction for source in self.datasets]
        if any(fraction is not None for fraction in fractions):
            missing = next((i for i, fraction in enumerate(fractions) if fraction is None), None)
            if missing is not None:
                yield f"datasets[{missing}].fraction is missing; give a fraction for all datasets or for none"
            elif not sum(fraction or 0.0 for fraction in fractions):
                yield "datasets[0].fraction is 0, as all others are, which leaves no rows; give one above 0"
        for i, source in enumerate(self.datasets):
            if source.seed is not None and source.fraction is None:
                yield f"datasets[{i}].seed draws the rows of a fraction, and there is none; give one, or leave it out"
        if self.is_streamed:
            yield from self._streaming_problems()
        size = self.test_split_size
        if size is not None and (size == 0 or (size > 1 and size % 1)):
            yield f"test_split_size is {size:g}; it must be a share below 1 or a whole number of rows"

    def _streaming_problems(self) -> Iterator[str]:
        name = "dataset_streaming" if self.dataset_streaming else "streaming"
        if self.max_steps is None or self.max_steps <= 0:
            yield f"{name} needs max_steps: nobody knows how many rows come, so an epoch has no length"
        if self.test_split_size is not None and self.test_split_size < 1:
            yield (
                f"test_split_size {self.test_split_size:g} is a share of rows, which {name} does not count; give a "
                "whole number: the first rows are held out"
            )
        for i, source in enumerate(self.datasets):
            if source.seed is not None:
                yield f"datasets[{i}].seed draws among all rows, which {name} does not count; leave it out"
        if self.train_sampling_strategy in ("group_by_length", "batch_rebalance"):
            yield (
                f"train_sampling_strategy {self.train_sampling_strategy} picks among all rows, and {name} reads them "
                "in their order; leave one of them out"
            )
        if getattr(self, "precompute_ref_log_probs", False):
            yield f"precompute_ref_log_probs goes through all rows before training, and {name} has no end; leave it out"

    def _model_problems(self) -> Iterator[str]:
        if self.load_in_4bit and self.load_in_8bit:
            yield "load_in_4bit and load_in_8bit exclude each other; give one of them"
        if (self.load_in_4bit or self.load_in_8bit) and not self.use_peft:
            yield "quantised weights cannot be trained themselves; add use_peft to train adapters on them"
        for switch, names in (("use_peft", LORA_FLAGS), ("load_in_4bit", FOUR_BIT_FLAGS)):
            unused = [name for name in names if name in self.explicit]
            if unused and switch not in self.explicit and not getattr(self, switch):
                yield f"{', '.join(unused)} without {switch} would do nothing; add {switch}, or leave it out"
        if self.lora_task_type == "SEQ_CLS" and self.method != "reward":
            yield f"lora_task_type SEQ_CLS is for models with a score, which {self.method} does not train; leave it out"
