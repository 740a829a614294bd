# ruff: noqa: RUF009 (theirs() returns a dataclass field; the long lists read better as words)
"""The flags of transformers.TrainingArguments, a class for each part of the help page.

A flag that the user leaves alone holds None, and transformers' own default (shown here) is what happens.
"""

from dataclasses import dataclass
from typing import Any

from posttrain.config.fields import flag, theirs

SCHEDULERS = (
    "linear cosine cosine_with_restarts polynomial constant constant_with_warmup inverse_sqrt reduce_lr_on_plateau"
    " cosine_with_min_lr cosine_warmup_with_min_lr warmup_stable_decay greedy"
).split()
OPTIMIZERS = (
    "adamw_torch adamw_torch_fused adamw_torch_xla adamw_torch_npu_fused adafactor adamw_anyprecision adamw_torch_4bit"
    " adamw_torch_8bit ademamix sgd adagrad adamw_bnb_8bit adamw_8bit ademamix_8bit lion_8bit lion_32bit"
    " paged_adamw_32bit paged_adamw_8bit paged_ademamix_32bit paged_ademamix_8bit paged_lion_32bit paged_lion_8bit"
    " rmsprop rmsprop_bnb rmsprop_bnb_8bit rmsprop_bnb_32bit galore_adamw galore_adamw_8bit galore_adafactor"
    " galore_adamw_layerwise galore_adamw_8bit_layerwise galore_adafactor_layerwise lomo adalomo grokadamw"
    " schedule_free_radam schedule_free_adamw schedule_free_sgd apollo_adamw apollo_adamw_layerwise stable_adamw"
).split()
LOG_LEVELS = ["detail", "debug", "info", "warning", "error", "critical", "passive"]
COMPILE_MODES = ["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
BACKENDS = ["nccl", "gloo", "mpi", "xccl", "hccl", "cncl", "mccl"]


@dataclass(kw_only=True)
class OptimisationFlags:
    """Optimisation"""

    learning_rate: float = flag(5e-5, "Step size of the optimizer at its peak.", low=0)
    num_train_epochs: float | None = theirs(3.0, "Passes over the training rows; may be a fraction.", low=0)
    max_steps: int | None = theirs(-1, "Optimizer steps to take; above 0 it overrules num_train_epochs.", low=-1)
    per_device_train_batch_size: int | None = theirs(8, "Rows (pairs, completions) per process and micro-batch.", low=1)
    gradient_accumulation_steps: int | None = theirs(1, "Micro-batches that make up one optimizer step.", low=1)
    lr_scheduler_type: str | None = theirs("linear", "Shape of the learning rate over the steps.", choices=SCHEDULERS)
    lr_scheduler_kwargs: dict[str, Any] | None = theirs(None, "Further settings of that shape, e.g. num_cycles=2.")
    warmup_steps: float | None = theirs(0, "Steps of rising learning rate; below 1 it is a share of all steps.", low=0)
    optim: str | None = theirs("adamw_torch_fused", "Optimizer.", choices=OPTIMIZERS)
    optim_args: str | None = theirs(None, "Settings for the optimizers that take any, as text: a=1,b=2.")
    optim_target_modules: str | list[str] | None = theirs(None, "Modules that a GaLore or APOLLO optimizer projects.")
    weight_decay: float | None = theirs(0.0, "Decoupled weight decay (norms and biases are left out).", low=0)
    adam_beta1: float | None = theirs(0.9, "Adam's decay of the mean gradient.", low=0, high=1)
    adam_beta2: float | None = theirs(0.999, "Adam's decay of the mean squared gradient.", low=0, high=1)
    adam_epsilon: float | None = theirs(1e-8, "Adam's guard against division by zero.", low=0)
    max_grad_norm: float | None = theirs(1.0, "Clip the gradient's norm to this; 0 switches clipping off.", low=0)
    label_smoothing_factor: float | None = theirs(0.0, "Share of a loss that goes to the vocabulary.", low=0, high=1)
    neftune_noise_alpha: float | None = theirs(None, "Noise on the embeddings while training (NEFTune), e.g. 5.", low=0)
    auto_find_batch_size: bool | None = theirs(False, "Halve the batch size until a step fits into memory.")
    average_tokens_across_devices: bool | None = theirs(True, "Divide a step by the tokens of all processes.")
    seed: int | None = theirs(42, "Seed of everything random.", low=0)
    data_seed: int | None = theirs(None, "Seed of the order of rows alone.", low=0)
    full_determinism: bool | None = theirs(False, "Bit-identical runs on a GPU too; slower.")


@dataclass(kw_only=True)
class PrecisionFlags:
    """Precision, memory and speed"""

    bf16: bool | None = flag(None, "Mixed precision in bfloat16; unset: on for GPUs that have it, off on a CPU.")
    fp16: bool | None = theirs(False, "Mixed precision in float16 with loss scaling.")
    bf16_full_eval: bool | None = theirs(False, "Evaluate with the weights cast to bfloat16.")
    fp16_full_eval: bool | None = theirs(False, "Evaluate with the weights cast to float16.")
    tf32: bool | None = theirs(None, "TensorFloat-32 matrix products on Ampere GPUs and newer.")
    gradient_checkpointing: bool | None = flag(
        None, "Recompute activations to save memory; unset: on where there is a GPU."
    )
    gradient_checkpointing_kwargs: dict[str, Any] | None = theirs(
        None, "Settings of gradient checkpointing, e.g. every_n_layers=2 (with transformers 5.23)."
    )
    activation_checkpointing: bool | None = flag(None, "transformers' newer name of gradient_checkpointing.")
    activation_checkpointing_kwargs: dict[str, Any] | None = theirs(
        None, "Newer name of gradient_checkpointing_kwargs."
    )
    torch_compile: bool | None = theirs(False, "Compile the model's layers with torch.compile, once for all lengths.")
    torch_compile_backend: str | None = theirs(None, "Backend of torch.compile; implies torch_compile.")
    torch_compile_mode: str | None = theirs(
        None, "Mode of torch.compile; implies torch_compile.", choices=COMPILE_MODES
    )
    use_liger_kernel: bool | None = theirs(False, "Liger's fused kernels (needs liger-kernel and a GPU).")
    liger_kernel_config: dict[str, Any] | None = theirs(None, "Which of Liger's kernels to use, e.g. rope=true.")
    use_cache: bool | None = theirs(False, "What the saved config says of the key-value cache.")
    torch_empty_cache_steps: int | None = theirs(None, "Empty the device's cache every so many steps.", low=1)
    skip_memory_metrics: bool | None = theirs(True, "Leave transformers' own (slow) memory metrics out.")


@dataclass(kw_only=True)
class EvaluationFlags:
    """Evaluation"""

    eval_strategy: str | None = theirs("no", "When to evaluate.", choices=("no", "steps", "epoch"))
    eval_steps: float | None = theirs(
        None, "Steps between evaluations (share of all below 1); unset: logging_steps.", low=0
    )
    per_device_eval_batch_size: int | None = theirs(8, "Rows per process and evaluation batch.", low=1)
    eval_on_start: bool | None = theirs(False, "Evaluate once before the first step.")
    eval_delay: float | None = theirs(0, "Steps or epochs before the first evaluation.", low=0)
    eval_accumulation_steps: int | None = theirs(None, "Batches of predictions kept on the device at a time.", low=1)
    eval_do_concat_batches: bool | None = theirs(True, "Join the predictions of all batches.")
    eval_use_gather_object: bool | None = theirs(False, "Gather predictions of any type from all processes.")
    batch_eval_metrics: bool | None = theirs(False, "Compute metrics batch by batch.")
    prediction_loss_only: bool | None = theirs(False, "Keep no more than the loss in evaluation.")
    include_for_metrics: list[str] | None = theirs([], "What else a metrics function is given.")
    do_train: bool | None = theirs(False, "Train.")
    do_eval: bool | None = theirs(False, "Evaluate after the last step even where eval_strategy is no.")


@dataclass(kw_only=True)
class LoggingFlags:
    """Logging and trackers"""

    logging_steps: float = flag(10, "Steps between log lines (share of all steps below 1).", low=0)
    logging_strategy: str | None = theirs("steps", "When to log.", choices=("no", "steps", "epoch"))
    logging_first_step: bool | None = theirs(False, "Log the first step too.")
    logging_nan_inf_filter: bool | None = theirs(True, "Leave NaN and infinite losses out of the logged mean.")
    report_to: str | list[str] | None = theirs("none", "Trackers: tensorboard, wandb, trackio, mlflow; or all, none.")
    run_name: str | None = theirs(None, "Name of the run in a tracker.")
    project: str | None = theirs("huggingface", "Project of the run in a tracker.")
    trackio_space_id: str | None = theirs(None, "Space that shows the Trackio run.")
    trackio_bucket_id: str | None = theirs(None, "Bucket that keeps the Trackio run.")
    trackio_static_space_id: bool | str | None = theirs(None, "Static Space for the finished Trackio run; unset: none.")
    include_num_input_tokens_seen: bool | str | None = theirs(
        "no", "Count the tokens read.", choices=("no", "all", "non_padding")
    )
    log_level: str | None = theirs("passive", "How much the main process says.", choices=LOG_LEVELS)
    log_level_replica: str | None = theirs("warning", "How much the other processes say.", choices=LOG_LEVELS)
    log_on_each_node: bool | None = theirs(True, "One process per machine logs, not one in all.")
    disable_tqdm: bool | None = theirs(None, "No progress bars.")
    debug: str | None = theirs("", "Debug modes of transformers: underflow_overflow.")


@dataclass(kw_only=True)
class SavingFlags:
    """Saving and resuming"""

    output_dir: str = flag("trainer_output", "Folder for the finished model (and checkpoints).")
    save_strategy: str | None = theirs("steps", "When to save a checkpoint.", choices=("no", "steps", "epoch", "best"))
    save_steps: float | None = theirs(500, "Steps between checkpoints (share of all steps below 1).", low=0)
    save_total_limit: int | None = theirs(None, "Checkpoints to keep; older ones are deleted.", low=1)
    save_only_model: bool | None = theirs(False, "Checkpoints without optimizer state; they cannot be resumed.")
    save_on_each_node: bool | None = theirs(False, "Every machine writes checkpoints to its own disk.")
    enable_jit_checkpoint: bool | None = theirs(False, "On SIGTERM save a checkpoint, and stop; always so.")
    resume_from_checkpoint: bool | str | None = theirs(
        None, "A checkpoint, true (the newest one) or false (anew); unset: goes on with its own run, if there is one."
    )
    ignore_data_skip: bool | None = theirs(False, "Resume at the first row, not where the checkpoint stopped.")
    restore_callback_states_from_checkpoint: bool | None = theirs(False, "Restore callbacks too when resuming.")
    load_best_model_at_end: bool | None = theirs(False, "End with the checkpoint that evaluated best.")
    metric_for_best_model: str | None = theirs(None, "Metric that says which is best; unset: the loss.")
    greater_is_better: bool | None = theirs(None, "Whether more of that metric is better.")


@dataclass(kw_only=True)
class HubFlags:
    """Hugging Face Hub"""

    push_to_hub: bool | None = theirs(False, "Upload the model.")
    hub_model_id: str | None = theirs(None, "Repository to upload to; unset: named after output_dir.")
    hub_strategy: str | None = theirs(
        "every_save", "When to upload what.", choices=("end", "every_save", "checkpoint", "all_checkpoints")
    )
    hub_token: str | None = theirs(None, "Access token; better kept in HF_TOKEN or by `hf auth login`.")
    hub_private_repo: bool | None = theirs(None, "Make the repository private.")
    hub_always_push: bool | None = theirs(False, "Upload even while the last upload still runs.")
    hub_revision: str | None = theirs(None, "Branch to upload to.")


@dataclass(kw_only=True)
class LoaderFlags:
    """Loading of batches"""

    train_sampling_strategy: str | None = theirs(
        "random", "Order of the rows.", choices=("random", "sequential", "group_by_length", "batch_rebalance")
    )
    length_column_name: str | None = theirs("length", "Column that holds the lengths of rows.")
    dataloader_drop_last: bool | None = theirs(False, "Drop the last batch of an epoch if it is not full.")
    dataloader_num_workers: int | None = theirs(0, "Processes that prepare batches.", low=0)
    dataloader_prefetch_factor: int | None = theirs(None, "Batches that each of them keeps ready.", low=1)
    dataloader_persistent_workers: bool | None = theirs(False, "Keep them between epochs.")
    dataloader_multiprocessing_context: str | None = theirs(
        None, "How they are started.", choices=("fork", "spawn", "forkserver")
    )
    dataloader_in_order: bool | None = theirs(True, "Batches in their order even if a later one is ready first.")
    dataloader_pin_memory: bool | None = theirs(True, "Page-locked memory for faster copies to the GPU.")
    remove_unused_columns: bool | None = theirs(True, "Drop columns that the model does not take.")
    label_names: list[str] | None = theirs(None, "Names of the label columns, for transformers.")


@dataclass(kw_only=True)
class DistributedFlags:
    """Devices and processes"""

    use_cpu: bool | None = theirs(False, "Train on the CPU even where there is a GPU.")
    deepspeed: dict[str, Any] | str | None = theirs(None, "DeepSpeed settings: JSON or a JSON file.")
    fsdp: bool | str | None = theirs(None, "Shard the model over processes (FSDP).")
    fsdp_config: dict[str, Any] | str | None = theirs(None, "FSDP settings: JSON or a JSON file.")
    accelerator_config: dict[str, Any] | str | None = theirs(None, "accelerate's own settings: JSON or a JSON file.")
    ddp_backend: str | None = theirs(None, "How processes talk to each other.", choices=BACKENDS)
    ddp_timeout: int | None = theirs(
        1800, "Seconds that a process waits for the others in the middle of a step; elsewhere without end.", low=1
    )
    ddp_find_unused_parameters: bool | None = theirs(None, "Look for parameters that a step does not use.")
    ddp_bucket_cap_mb: int | None = theirs(None, "Megabytes of gradient sent at a time.", low=1)
    ddp_broadcast_buffers: bool | None = theirs(None, "Send the model's buffers to all processes each step.")
    ddp_static_graph: bool | None = theirs(None, "Promise that every step uses the same parameters.")
    local_rank: int | None = theirs(-1, "Number of this process on its machine; the launcher sets it.", low=-1)


@dataclass(kw_only=True)
class TrainingFlags(
    DistributedFlags,
    LoaderFlags,
    HubFlags,
    SavingFlags,
    LoggingFlags,
    EvaluationFlags,
    PrecisionFlags,
    OptimisationFlags,
):
    """All flags that are handed to transformers.TrainingArguments."""
