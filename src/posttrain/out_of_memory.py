"""What to change where memory ran out: the flags of the run at hand that cost the most, with values to try."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from posttrain.config import CommonConfig
from posttrain.errors import is_out_of_memory

_WIDTH = 65  # of the column of flags


@contextmanager
def advice_when_out_of_memory(config: CommonConfig) -> Iterator[None]:
    """Adds a note with `memory_advice` to an error that says that memory ran out, and lets it pass."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            error.add_note("\n".join(_lines(config)))
        raise


def memory_advice(config: CommonConfig, on_gpu: bool | None = None) -> dict[str, list[tuple[str, str]]]:
    """Flags that make a run need less memory.

    Args:
        config: of the run that did not fit.
        on_gpu: where it is trained; None: this machine says so.

    Returns:
        Under two titles, the harmless ones first: (flags with values, what they do) each; without those that the run
        has already.
    """
    given: Any = config
    if on_gpu is None:
        import torch  # not before memory has run out

        on_gpu = torch.cuda.is_available() and not config.use_cpu
    return {
        "the optimizer steps stay as they are": list(_same_steps(given, on_gpu)),
        "what is trained changes": list(_other_steps(given)),
    }


def _lines(config: CommonConfig) -> Iterator[str]:
    for title, advice in memory_advice(config).items():
        if advice:
            yield f"Less memory, and {title}:"
            yield from (f"  {flags:<{_WIDTH}}  {why}".rstrip() for flags, why in advice)


def _same_steps(config: Any, on_gpu: bool) -> Iterator[tuple[str, str]]:
    batch, accumulation = config.per_device_train_batch_size or 8, config.gradient_accumulation_steps or 1
    if batch > 1:
        smaller = max(part for part in range(1, batch // 2 + 1) if batch % part == 0)
        pieces = accumulation * batch // smaller
        flags = f"--per_device_train_batch_size {smaller} --gradient_accumulation_steps {pieces}"
        if getattr(config, "steps_per_generation", None):
            flags += f" --steps_per_generation {config.steps_per_generation * batch // smaller}"
        yield flags, "the same step, in pieces"
    if config.method in ("grpo", "rloo") and not config.use_vllm:
        yield f"--rollout_batch_size {max(1, config.rollout_batch_size // 4)}", "fewer sampled at a time"
    if config.eval_strategy not in (None, "no") and (config.per_device_eval_batch_size or 8) > 1:
        yield "--per_device_eval_batch_size 1", "if it was an evaluation"
    if not config.recomputes_activations(on_gpu):
        yield "--gradient_checkpointing", "computes activations twice"
    elif config.recompute != "layers":
        yield "--recompute layers", "computes all of them twice"
    if on_gpu and not config.activation_offloading:
        yield "--activation_offloading", "they wait in the CPU's memory"
    if config.method == "dpo" and _can_precompute(config):
        yield "--precompute_ref_log_probs", "no reference in training"


def _can_precompute(config: Any) -> bool:
    """Whether log-probs of a reference that takes memory may be computed once, and are not yet."""
    return not (config.precompute_ref_log_probs or config.sync_ref_model or config.use_peft or config.is_streamed)


def _other_steps(config: Any) -> Iterator[tuple[str, str]]:
    if not config.use_peft:
        yield "--use_peft", "LoRA: trains adapters alone"
    elif not (config.load_in_4bit or config.load_in_8bit):
        yield "--load_in_4bit", "QLoRA; needs a GPU"
    if getattr(config, "max_length", None):
        yield (
            f"--max_length {max(1, config.max_length // 2)}",
            "leaves more pairs out" if config.method == "reward" else "cuts rows",
        )
    if config.method in ("grpo", "rloo"):
        yield f"--max_completion_length {max(1, config.max_completion_length // 2)}", "shorter completions"
    if config.dtype in (None, "float32"):
        yield "--dtype bfloat16", "half the bytes, coarser"
