"""Flags that are accepted and change nothing, since the design makes them needless; and those that are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from posttrain.config.fields import flags_of
from posttrain.config.generation_engines import GenerationEngineFlags

if TYPE_CHECKING:
    from posttrain.config.common import CommonConfig

_NO_PADDING = "batches never hold padding"
_NO_PREDICTIONS = "evaluation adds up losses and metrics, and keeps no predictions"
_AS_IN_TRAINING = "evaluation takes the precision of training"
_NO_WHOLE_LOGITS = "what it saves is saved for every model: log-probs are computed without whole logits in memory"
_SAMPLED = "batches are sampled, not read"
_OWN_ENGINE = "posttrain's own engine generates, with caches of its own"
_WITHOUT_VLLM = "it is for vLLM: add --use_vllm"
_SERVERS_OWN = "the server's own command line says it"
_NO_SERVER = "it is for --vllm_mode server"
_BY_FILES = "weights travel as files, through vllm_weights_dir"
_NO_ADDRESS_NEEDED = "vllm_server_base_url says it"

_FOR_ALL = {
    "padding_free": _NO_PADDING,
    "pad_to_multiple_of": _NO_PADDING,
    "remove_unused_columns": "each method picks its columns, and rewards get all of them",
    "length_column_name": "the lengths of tokenised rows are known",
    "eval_accumulation_steps": _NO_PREDICTIONS,
    "eval_do_concat_batches": _NO_PREDICTIONS,
    "eval_use_gather_object": _NO_PREDICTIONS,
    "batch_eval_metrics": _NO_PREDICTIONS,
    "prediction_loss_only": _NO_PREDICTIONS,
    "include_for_metrics": _NO_PREDICTIONS,
    "label_names": "there are no label columns",
    "bf16_full_eval": _AS_IN_TRAINING,
    "fp16_full_eval": _AS_IN_TRAINING,
    "use_liger_kernel": _NO_WHOLE_LOGITS,
    "liger_kernel_config": _NO_WHOLE_LOGITS,
    "skip_memory_metrics": "peak_memory_mib is logged at no cost",
    "logging_nan_inf_filter": "a step whose loss is not finite is neither applied nor logged",
    "average_tokens_across_devices": "all processes share one divisor, always; false is refused",
    "enable_jit_checkpoint": "a signal always ends a run with a checkpoint, and with 128 + its number",
    "do_train": "the command trains",
    "local_rank": "the launcher says it in the environment",
}
_FOR_ROLLOUTS = {
    "dataloader_num_workers": _SAMPLED,
    "dataloader_prefetch_factor": _SAMPLED,
    "dataloader_persistent_workers": _SAMPLED,
    "dataloader_multiprocessing_context": _SAMPLED,
    "dataloader_in_order": _SAMPLED,
    "dataloader_pin_memory": _SAMPLED,
    "dataloader_drop_last": "generations are always whole",
    "log_multimodal": "there is nothing but text",
    "cache_implementation": _OWN_ENGINE,
    "use_transformers_continuous_batching": _OWN_ENGINE,
    "transformers_continuous_batching_config": _OWN_ENGINE,
    "use_transformers_paged": _OWN_ENGINE,
    "ds3_gather_for_generation": "sampling gathers what it needs",
    "vllm_group_port": _BY_FILES,
}
_OF_A_SERVER = ("vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout")
_OF_A_PROCESS = (
    *("vllm_model_impl", "vllm_enable_sleep_mode", "vllm_gpu_memory_utilization", "vllm_max_model_length"),
    "vllm_tensor_parallel_size",
)


_REFUSED = {
    "label_smoothing_factor": "log-probs of the target tokens alone are computed; dpo has label_smoothing, for pairs",
    "generation_kwargs": "use temperature, top_p, top_k, min_p, repetition_penalty and max_completion_length",
    "cast_lm_head_to_fp32": "use dtype float32",
    "max_tool_calling_iterations": "completions call no tools",
    "log_completions_hub_repo": "use log_completions, which writes files into the run's folder",
}
_REFUSED_FOR_ROLLOUTS = {
    "train_sampling_strategy": "it is for rows; use shuffle_dataset",
    "auto_find_batch_size": "it would break groups of completions apart; use per_device_train_batch_size",
}


def refused(cls: type[CommonConfig]) -> dict[str, str]:
    """The flags of a method that are refused where they ask for anything but the default, each with what to do.

    Args:
        cls: The config of the method.
    """
    reasons = _REFUSED | (_REFUSED_FOR_ROLLOUTS if cls.data_kind == "prompts" else {})
    if cls.data_kind == "reward":
        reasons["router_aux_loss_coef"] = "transformers' classifiers compute no router loss"
    return {name: reasons[name] for name in flags_of(cls) if name in reasons}


def without_effect(cls: type[CommonConfig]) -> dict[str, str]:
    """The flags of a method that change nothing, each with the reason.

    Args:
        cls: The config of the method.
    """
    reasons = dict(_FOR_ALL)
    if cls.data_kind == "prompts":
        reasons |= _FOR_ROLLOUTS
    return {name: reasons[name] for name in flags_of(cls) if name in reasons}


def _without_effect_here(config: CommonConfig) -> dict[str, str]:
    """Flags of vLLM that another flag leaves nothing to say to."""
    if not isinstance(config, GenerationEngineFlags):
        return {}
    if not config.use_vllm:
        return {name: _WITHOUT_VLLM for name in flags_of(type(config)) if name.startswith("vllm_")}
    if not config.uses_vllm_server:
        return {name: _NO_SERVER for name in _OF_A_SERVER}
    reasons = {name: _SERVERS_OWN for name in _OF_A_PROCESS}
    if config.vllm_server_base_url is not None:
        reasons |= {name: _NO_ADDRESS_NEEDED for name in ("vllm_server_host", "vllm_server_port")}
    return reasons


def remark(config: CommonConfig) -> str | None:
    """One line about the flags that the user set and that change nothing, or None.

    Args:
        config: With the names that the user set, in `explicit`.
    """
    reasons: dict[str, list[str]] = {}
    for name, reason in (without_effect(type(config)) | _without_effect_here(config)).items():
        if name in config.explicit:
            reasons.setdefault(reason, []).append(name)
    if not reasons:
        return None
    return "Without effect here: " + "; ".join(f"{', '.join(names)} ({why})" for why, names in reasons.items())
