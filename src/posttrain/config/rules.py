"""Rules between the flags that transformers owns."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from posttrain.config.common import CommonConfig


MOST_LEARNING_RATE = 1000.0
# In this version transformers renamed two of its arguments, about whose old names it warns, and added two settings.
NEW_CHECKPOINTING_SINCE = (5, 23)
# Settings of gradient checkpointing: those two, and torch.utils.checkpoint's.
OF_TRANSFORMERS = {"every_n_layers", "offload"}
CHECKPOINTING_SETTINGS = OF_TRANSFORMERS | set(
    "use_reentrant preserve_rng_state determinism_check debug early_stop".split()
)


def has_new_checkpointing() -> bool:
    """Whether the installed transformers is new enough for those names and settings."""
    return tuple(int(part) for part in version("transformers").split(".")[:2]) >= NEW_CHECKPOINTING_SINCE


def training_problems(config: CommonConfig) -> Iterator[str]:
    """What is wrong between the flags of transformers, one message a mistake."""
    evaluates = config.eval_strategy not in (None, "no")
    if config.fp16 and config.bf16:
        yield "fp16 and bf16 exclude each other; give one of them"
    if config.fp16 and config.dtype == "float16" and not config.use_peft:
        yield "fp16 scales the gradients of weights in float32, and dtype is float16; leave out dtype"
    if config.fp16_full_eval and config.bf16_full_eval:
        yield "fp16_full_eval and bf16_full_eval exclude each other; give one of them"
    if config.label_smoothing_factor:
        yield (
            "label_smoothing_factor is not available: log-probs of the target tokens alone are computed, never "
            "those of the whole vocabulary; leave it out (DPO has label_smoothing, for pairs)"
        )
    if config.average_tokens_across_devices is False:
        yield "average_tokens_across_devices cannot be switched off: a step always divides by its tokens everywhere"
    yield from _size_problems(config)
    for name in ("prefetch_factor", "persistent_workers", "multiprocessing_context"):
        if getattr(config, f"dataloader_{name}") and not config.dataloader_num_workers:
            yield f"dataloader_{name} needs dataloader_num_workers above 0"
    yield from _checkpointing_problems(config)
    if config.logging_steps == 0 and config.logging_strategy in (None, "steps"):
        yield "logging_steps is 0; give a number of steps, or set logging_strategy to no"
    for name in ("logging_steps", "eval_steps", "save_steps"):
        steps = getattr(config, name)
        if steps is not None and steps > 1 and steps % 1:
            yield f"{name} is {steps:g}; it must be a share below 1 or a whole number of steps"
    if config.save_strategy == "best" and config.metric_for_best_model is None and not config.load_best_model_at_end:
        yield "save_strategy best needs to know what is best; give metric_for_best_model, such as loss"
    if config.load_best_model_at_end or config.save_strategy == "best":
        yield from _best_model_problems(config, evaluates)
    yield from _optimizer_problems(config, evaluates)


def _checkpointing_problems(config: CommonConfig) -> Iterator[str]:
    given = config.gradient_checkpointing_kwargs or {}
    unknown = sorted(set(given) - CHECKPOINTING_SETTINGS)
    if unknown:
        known = ", ".join(sorted(CHECKPOINTING_SETTINGS))
        yield f"gradient_checkpointing_kwargs: {', '.join(unknown)} is not one of {known}"
    every = given.get("every_n_layers", 1)
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        yield f"gradient_checkpointing_kwargs: every_n_layers is {every!r}; it must be a whole number of at least 1"
    new = sorted(OF_TRANSFORMERS & set(given))
    if new and not has_new_checkpointing():
        wanted = ".".join(map(str, NEW_CHECKPOINTING_SINCE))
        yield f"gradient_checkpointing_kwargs: {', '.join(new)} needs transformers {wanted} or newer; leave it out"
    if config.recompute == "elementwise" and config.compiles:
        yield "recompute elementwise keeps products, which torch_compile hides from it; take all_but_attention"
    if given.get("offload") and config.recompute != "layers":
        yield f"gradient_checkpointing_kwargs: offload leaves on the GPU what recompute {config.recompute} keeps"
    if config.recompute == "layers":
        return
    if config.gradient_checkpointing is False:
        yield f"recompute {config.recompute} says what gradient checkpointing computes again, and that is switched off"
    if given.get("use_reentrant"):
        yield f"recompute {config.recompute} needs use_reentrant=false, which is the default; leave it out"


def _size_problems(config: CommonConfig) -> Iterator[str]:
    """Numbers with which nothing would be trained, or nothing be learnt."""
    if config.num_train_epochs == 0 and (config.max_steps or 0) <= 0:
        yield "num_train_epochs is 0, with which nothing is trained; give a number above 0"
    if config.learning_rate > MOST_LEARNING_RATE:
        yield f"learning_rate is {config.learning_rate:g}, with which nothing is learnt; give one such as 1e-5"
    if config.seed is not None and config.seed >= 2**32:
        yield f"seed is {config.seed}; numpy takes none above {2**32 - 1}"
    for name in ("adam_beta1", "adam_beta2"):
        if getattr(config, name) == 1:
            yield f"{name} is 1, with which Adam never sees a gradient; give a number below 1, such as 0.9"
    if config.use_peft and config.lora_dropout == 1:
        yield "lora_dropout is 1, which leaves the adapters no input; give a number below 1, such as 0.05"
    warmup, steps = config.warmup_steps or 0, config.max_steps or -1
    if 0 < steps < warmup and warmup >= 1:
        yield f"warmup_steps ({warmup:g}) is more than max_steps ({steps}); training would end before the learning rate"
    saving = {"save_steps": config.save_strategy or "steps", "eval_steps": config.eval_strategy}
    for name, strategy in saving.items():
        if getattr(config, name) == 0 and strategy == "steps":
            yield f"{name} is 0; give a number of steps, or set {name.removesuffix('steps')}strategy to no"


def _optimizer_problems(config: CommonConfig, evaluates: bool) -> Iterator[str]:
    if config.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy") and not evaluates:
        yield f"lr_scheduler_type {config.lr_scheduler_type} follows evaluations; set eval_strategy to steps or epoch"
    projects = (config.optim or "").startswith(("galore", "apollo"))
    if projects and config.optim_target_modules is None:
        yield f"optim {config.optim} needs to know what it projects; give optim_target_modules, such as all-linear"
    if config.optim_target_modules is not None and not projects:
        yield "optim_target_modules is for GaLore and APOLLO; set optim to one of them, or leave it out"
    if config.optim_args is not None and any(part.count("=") != 1 for part in config.optim_args.split(",")):
        yield f"optim_args is {config.optim_args!r}; it must be of the form rank=64,scale=0.5"


def _best_model_problems(config: CommonConfig, evaluates: bool) -> Iterator[str]:
    saving, evaluating = config.save_strategy or "steps", config.eval_strategy
    if not evaluates:
        asking = "load_best_model_at_end" if config.load_best_model_at_end else "save_strategy best"
        yield f"{asking} needs evaluations; set eval_strategy to steps or epoch"
    elif saving not in ("best", evaluating):
        yield f"load_best_model_at_end needs save_strategy {evaluating} (as eval_strategy) or best, not {saving}"
    elif saving == "steps":
        save_steps, eval_steps = config.save_steps or 500, config.eval_steps or config.logging_steps
        ratio = save_steps / eval_steps
        if (save_steps < 1) != (eval_steps < 1) or abs(ratio - round(ratio)) > 1e-9:
            yield (
                f"load_best_model_at_end needs save_steps ({save_steps:g}) to be a multiple of eval_steps"
                f" ({eval_steps:g})"
            )
