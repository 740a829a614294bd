"""Names that posttrain refuses, and what to type in their place."""

_NEW_NAME = {
    "max_seq_length": "max_length",
    "kl_coef": "beta",
    "rloo_k": "num_generations",
    "torch_dtype": "dtype",
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "tokenizer_name_or_path": "model_name_or_path (the tokenizer is read from there)",
}

_REASON = {
    "max_prompt_length": "prompts are no longer cut on their own; max_length limits prompt and answer together",
    "rpo_alpha": "use --loss_type sigmoid sft --loss_weights 1.0 ALPHA, which adds the same term",
    "reference_free": "a loss without a reference is no longer available; leave it out",
    "token_level_kl": "leave it out; the KL of a completion is summed over its tokens",
    "warmup_ratio": "use warmup_steps; a number below 1 is a share of all steps (--warmup_steps 0.1)",
    "overwrite_output_dir": "leave it out; a finished model always takes the place of what output_dir holds",
    "group_by_length": "use --train_sampling_strategy group_by_length",
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR",
    "save_safetensors": "leave it out; models are always saved as safetensors",
    "use_liger_loss": "leave it out; losses never hold whole logits in memory",
    "generate_during_eval": "leave it out; evaluate the finished model with prompts of its own",
    "include_tokens_per_second": "leave it out; tokens per second are always logged",
    "parallelism_config": "put a parallelism_config into an accelerate file and name that with --accelerate_config",
    "do_predict": "these commands do not predict; set eval_strategy to evaluate, or evaluate the finished model",
    "max_pixels": "posttrain trains text models only; leave it out",
    "min_pixels": "posttrain trains text models only; leave it out",
}


def refused_names() -> dict[str, str]:
    """All names that are refused, and what a message says of each after its name."""
    return {name: f"is now called {new}" for name, new in _NEW_NAME.items()} | {
        name: f"is not available: {reason}" for name, reason in _REASON.items()
    }


def refusal(name: str) -> str | None:
    """Why a name is refused and what to use, or None for a name that is not among them.

    Args:
        name: A flag without its dashes, or a key.
    """
    return refused_names().get(name)
