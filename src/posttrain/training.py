"""A run from its flags to a finished model folder: data, model, trainer, files. The same path for every method."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import broadcast_object_list
from transformers import TrainingArguments
from transformers.trainer_utils import enable_full_determinism

from posttrain.adapters import add_adapter, check_adapter
from posttrain.arguments import checked_arguments
from posttrain.checkpoints import (
    only_run_in,
)
from posttrain.compiled import compile_as_asked
from posttrain.config import CommonConfig
from posttrain.data.prepare import PreparedData, prepare
from posttrain.data.stream import Stream
from posttrain.data.tokenizer import load_tokenizer
from posttrain.disk import check_room
from posttrain.errors import UserError
from posttrain.file_hashes import base_model
from posttrain.finished import bytes_to_write, save
from posttrain.heap import keep_what_is_freed
from posttrain.loading import libraries_loaded
from posttrain.log_line import peak_memory_mib
from posttrain.machine import has_bf16
from posttrain.methods import Method
from posttrain.model_check import check_models, check_vocabulary
from posttrain.models import (
    digest_of_model,
    disable_dropout,
    keep_bool_buffers_out_of_ddp,
    match_tokenizer,
)
from posttrain.one_run import check_same, num_machines, settle_disks
from posttrain.planned import StepClock, plan_file, tell_outcome
from posttrain.positions import check_positions
from posttrain.provenance import Provenance
from posttrain.publish import create_repository
from posttrain.recompute import recompute_callbacks
from posttrain.runs import digest_of, digest_of_files, fingerprint, settle, what_it_depends_on
from posttrain.sharding import allow_fsdp_on_cpu, is_sharded, read_whole
from posttrain.step_record import StepRecord
from posttrain.tensorboard_run import use_tensorboard_run
from posttrain.terminal import show_long_bars_only
from posttrain.trainer import PostTrainer
from posttrain.waiting import first_here, wait_for_all

logger = logging.getLogger(__name__)


def run(method: Method) -> dict[str, float]:
    """Trains what the flags say and leaves a finished model in `output_dir`.

    Args:
        method: what to train, with the flags of the run.

    Returns:
        The run's metrics, flat: the last logged values, evaluation (`eval_…`), counts of the data (`data/…`), timing.

    Raises:
        UserError: a mistake in flags or data, before any weight is loaded where that can be known.
        RunFailed: it cannot go on; its last checkpoint is whole.
    """
    libraries_loaded()
    config = method.config
    show_long_bars_only()
    arguments = training_arguments(config)  # before rows are read, which takes its time
    if arguments.device.type == "cpu":
        keep_what_is_freed()
    provenance = Provenance(config) if arguments.process_index == 0 else None  # and before anybody edits the code
    settle_disks(config, arguments)
    with read_whole(arguments):
        check_models(config)
        check_adapter(config)
    tokenizer = load_tokenizer(config)
    check_vocabulary(config, tokenizer)
    with first_here("rows that another one prepares"):
        train = prepare(config, tokenizer, config.data_kind, config.dataset_train_split)
        assert train is not None
        evaluation = _evaluation_data(config, tokenizer)
    datasets = [train.dataset] if evaluation is None else [train.dataset, evaluation.dataset]
    allow_fsdp_on_cpu(arguments)
    method.check(arguments, datasets)
    check_positions(config, datasets)
    if arguments.push_to_hub and arguments.process_index == 0:
        create_repository(arguments)
    folder = Path(config.work_dir or config.output_dir or ".").expanduser()
    flag = "work_dir" if config.work_dir else "output_dir"
    with only_run_in(folder, flag) if arguments.process_index == 0 else contextlib.nullcontext():
        return _build_and_train(method, tokenizer, arguments, train, evaluation, provenance)


def _build_and_train(
    method: Method,
    tokenizer: Any,
    arguments: TrainingArguments,
    train: PreparedData,
    evaluation: PreparedData | None,
    provenance: Provenance | None,
) -> dict[str, float]:
    config = method.config
    datasets = [data.dataset for data in (train, evaluation) if data is not None]
    if arguments.full_determinism:
        enable_full_determinism(arguments.seed)  # before the first product: cuBLAS looks once what it may do
    else:
        transformers.set_seed(arguments.seed)
    try:
        with read_whole(arguments):
            model = _load(method, tokenizer, arguments)
            scorer = method.make_scorer(model)
            reference = _reference_files(config) if _tells(arguments) else {}
            about = what_it_depends_on(config) | _what_was_loaded(method, model, datasets, arguments, reference)
            if provenance is not None:
                data = {"train": train} | ({} if evaluation is None else {"test": evaluation})
                provenance.loaded(about, tokenizer, data, reference | method.made_from(), arguments.world_size)
            if config.work_dir is not None:
                arguments.output_dir = str(Path(config.work_dir) / fingerprint(about))
            checkpoint = settle(Path(arguments.output_dir), config, about, arguments)
            datasets = method.setup(model, scorer, datasets, arguments)
        wait_for_all("log-probs of the reference")
        return _train(method, model, scorer, datasets, arguments, tokenizer, train.counts, checkpoint, provenance)
    finally:
        method.close()


def _reference_files(config: CommonConfig) -> dict[str, Any]:
    """The files of a reference model that is not the policy itself, as a section of the provenance."""
    name = getattr(config, "ref_model_name_or_path", None)
    return {"reference": base_model(name)} if name else {}


def _what_was_loaded(
    method: Method,
    model: transformers.PreTrainedModel,
    datasets: Sequence[Any],
    arguments: TrainingArguments,
    reference: dict[str, Any],
) -> dict[str, Any]:
    """What a run depends on beside its flags. The first process of each machine reads it; all call this together."""
    if not _tells(arguments):
        wait_for_all("reading models")
        return _of_the_first(None, method.config)
    is_folder = reference and Path(reference["reference"]["name"]).is_dir()
    generation = getattr(model, "generation_config", None)
    settings = [model.config.to_dict(), {} if generation is None else generation.to_dict()]
    of_paths = ("_name_or_path", "transformers_version")
    about = {
        "rows": [rows._fingerprint for rows in datasets],
        "weights": digest_of_model(model),
        "config": digest_of([{k: v for k, v in one.items() if k not in of_paths} for one in settings]),
        "reference": digest_of_files(reference["reference"]["files"]) if is_folder else None,
        "rewards": method.depends_on(),
        "processes": arguments.world_size,
        "device": arguments.device.type,
    }
    wait_for_all("reading models")
    return _of_the_first(about, method.config) if arguments.world_size > 1 else about


def _tells(arguments: TrainingArguments) -> bool:
    """Whether this process tells what a run depends on: the first, and of several machines the first of each."""
    return arguments.local_process_index == 0 and (arguments.process_index == 0 or num_machines() > 1)


def _of_the_first(about: dict[str, Any] | None, config: CommonConfig) -> dict[str, Any]:
    """What the first process has found, in all processes, when all machines have found the same.

    Args:
        about: what this one has found.
        config: of the run.
    """
    if num_machines() > 1:
        check_same(None if about is None else what_it_depends_on(config) | about)
    return dict(broadcast_object_list([about])[0])


def _load(method: Method, tokenizer: Any, arguments: TrainingArguments) -> transformers.PreTrainedModel:
    config = method.config
    model = method.load(tokenizer)
    match_tokenizer(model, tokenizer)
    if getattr(config, "disable_dropout", False):
        disable_dropout(model)
    if config.ignore_bias_buffers:
        keep_bool_buffers_out_of_ddp(model)
    if config.router_aux_loss_coef is not None:
        model.config.output_router_logits = True
    if not (is_sharded(arguments) or config.load_in_4bit or config.load_in_8bit):
        model.to(arguments.device)  # before the trial of the ways to score, and before a reference scores the data
    return model


def _train(
    method: Method,
    model: transformers.PreTrainedModel,
    scorer: Any,
    datasets: Sequence[Any],
    arguments: TrainingArguments,
    tokenizer: Any,
    counts: dict[str, int],
    checkpoint: str | None,
    provenance: Provenance | None,
) -> dict[str, float]:
    config, clock, planned = method.config, StepClock(), plan_file(method.config, arguments.world_size)
    model = add_adapter(model, config) if config.use_peft else model
    compile_as_asked(model, config, arguments.gradient_checkpointing)
    trainer = PostTrainer(
        method,
        scorer,
        model=model,
        args=arguments,
        train_dataset=datasets[0],
        eval_dataset=datasets[1] if len(datasets) > 1 else None,
        processing_class=tokenizer,
        callbacks=[*method.callbacks(), *recompute_callbacks(config), *([clock] if planned.is_file() else [])],
    )
    trainer.provenance = provenance
    if config.record_steps is not None:
        trainer.record_steps(StepRecord(Path(config.record_steps), arguments.process_index))
    use_tensorboard_run(trainer, method, datasets[0], tokenizer)
    if arguments.should_save and checkpoint is None:
        check_room(Path(arguments.output_dir), *bytes_to_write(trainer))
    result = trainer.train(resume_from_checkpoint=checkpoint)
    if len(datasets) > 1 and "eval_loss" not in _last(trainer.state.log_history, "eval_loss"):
        trainer.evaluate()
    if isinstance(datasets[0], Stream):
        datasets[0].report()
    metrics = dict(result.metrics)
    for key in ("loss", "eval_loss"):
        metrics.update(_last(trainer.state.log_history, key))
    metrics["tokens_per_second"] = trainer.tokens_per_second
    metrics.update({f"data/{name}": float(count) for name, count in counts.items()})
    save(config, trainer, metrics, checkpoint)
    if arguments.process_index == 0:
        tell_outcome(planned, Path(arguments.output_dir), peak_memory_mib(arguments.device), clock)
    return metrics


def _evaluation_data(config: CommonConfig, tokenizer: Any) -> PreparedData | None:
    if config.eval_strategy in (None, "no") and not config.do_eval:
        return None
    data = prepare(config, tokenizer, config.data_kind, config.dataset_test_split)
    if data is None:
        raise UserError(
            f"--eval_strategy {config.eval_strategy} needs evaluation data, and {config.dataset_name} has no split "
            f"{config.dataset_test_split}: name one with --dataset_test_split, hold some rows back with "
            "--test_split_size 0.05, or leave --eval_strategy out",
            "troubleshooting.md#data",
        )
    return data


def training_arguments(config: CommonConfig) -> TrainingArguments:
    """transformers' arguments of a run, with what this project decides: precision by hardware, batches as they are."""
    on_gpu = torch.cuda.is_available() and not config.use_cpu
    decided: dict[str, Any] = {"output_dir": config.work_dir or config.output_dir, "remove_unused_columns": False}
    if not torch.accelerator.is_available():
        decided["use_cpu"] = True
    if config.bf16 is None and not config.fp16:
        decided["bf16"] = on_gpu and has_bf16(torch)
    if not on_gpu:
        decided |= _what_a_cpu_lacks(config)
    decided["gradient_checkpointing"] = config.recomputes_activations(on_gpu)
    decided["gradient_checkpointing_kwargs"] = {"use_reentrant": False} | (config.gradient_checkpointing_kwargs or {})
    if config.ddp_find_unused_parameters is None:
        decided["ddp_find_unused_parameters"] = False  # every parameter takes part; looking for others costs time
    if config.trackio_static_space_id is None:
        decided["trackio_static_space_id"] = False  # a public page of the run is made for those who name one
    if config.push_to_hub and config.hub_model_id is None:
        decided["hub_model_id"] = Path(config.output_dir).absolute().name
    if config.dataloader_pin_memory is None:
        decided["dataloader_pin_memory"] = on_gpu
    return checked_arguments(config.training_arguments(**decided), config.to_mapping())


def _what_a_cpu_lacks(config: CommonConfig) -> dict[str, Any]:
    """Precisions that were asked for and that only other hardware has: a command made for a GPU runs in float32."""
    lacking = {
        "bf16": bool(config.bf16) and not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        "fp16": bool(config.fp16),
        "tf32": bool(config.tf32),
    }
    for name in (name for name, lacks in lacking.items() if lacks):
        logger.warning("--%s: this machine has no hardware for it; training in float32.", name)
    return {name: False if name != "tf32" else None for name, lacks in lacking.items() if lacks}


def _last(history: list[dict[str, float]], key: str) -> dict[str, float]:
    line = next((line for line in reversed(history) if key in line), {})
    return {name: value for name, value in line.items() if name not in ("step", "epoch")}
