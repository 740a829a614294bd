"""How the completions of a generation are cut into micro-batches: what flags and processes alone decide."""

import math

from posttrain.errors import UserError

PAGE = "grpo.md#the-numbers-of-a-step"


def steps_of_generation(
    num_generations: int,
    per_device: int,
    accumulation: int,
    generation_batch_size: int | None,
    steps_per_generation: int | None,
    world_size: int,
) -> int:
    """Micro-batches that a generation is cut into, checked.

    Args:
        num_generations, generation_batch_size, steps_per_generation: the flags.
        per_device: per_device_train_batch_size, counted in completions.
        accumulation: gradient_accumulation_steps.
        world_size: processes.

    Raises:
        UserError: the completions of a prompt do not fill the generation evenly, or the micro-batches do not.
    """
    together = per_device * world_size
    where = f"per_device_train_batch_size {per_device}" + (f" × {world_size} processes" if world_size > 1 else "")
    if generation_batch_size is not None and generation_batch_size % together:
        raise UserError(
            f"generation_batch_size {generation_batch_size} is no multiple of {where}; give one that is, such as "
            f"{together * max(1, generation_batch_size // together)}",
            PAGE,
        )
    steps = steps_per_generation or (generation_batch_size // together if generation_batch_size else accumulation)
    if together * steps % num_generations:
        raise UserError(
            f"{where} × {steps} micro-batches are {together * steps} completions at a time, which is no "
            f"multiple of num_generations {num_generations}; change one of them, for example "
            f"--per_device_train_batch_size {num_generations} or --steps_per_generation "
            f"{math.lcm(together, num_generations) // together}",
            PAGE,
        )
    if steps % accumulation and accumulation % steps:
        raise UserError(
            f"a generation is cut into {steps} micro-batches, and an optimizer step takes {accumulation} "
            "(gradient_accumulation_steps); one must be a multiple of the other",
            PAGE,
        )
    return steps
