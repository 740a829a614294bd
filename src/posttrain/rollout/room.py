"""What a run of reinforcement learning has no room for: completions too long for the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from posttrain.config import PolicyConfig
from posttrain.data.stream import Stream
from posttrain.errors import UserError
from posttrain.positions import positions_of

if TYPE_CHECKING:
    from datasets import Dataset


def check_room(config: PolicyConfig, datasets: Sequence[Dataset], served: int | None = None) -> int | None:
    """Compare the longest prompt and completion with the positions that the model knows; reads its config alone.

    Args:
        config: of the run.
        datasets: tokenised prompts, to train and perhaps to evaluate on.
        served: positions that vLLM has room for, where it samples.

    Returns:
        Tokens of the longest prompt and completion; None: not known of streamed prompts.

    Raises:
        UserError: they do not fit.
    """
    room, who = positions_of(config).number, str(config.model_name_or_path)
    if served is not None and (room is None or served < room):
        flag = "--max-model-len of the server" if config.uses_vllm_server else "--vllm_max_model_length"
        room, who = served, f"vLLM ({flag})"
    needed: list[int | None] = []
    for dataset, in_evaluation in zip(datasets, (False, True), strict=False):
        if isinstance(dataset, Stream):
            _limit_prompts(config, dataset, room, who)
            most = config.max_prompt_tokens
            needed.append(None if most is None else most + config.max_completion_length)
            continue
        longest = pc.max(pc.list_value_length(dataset.data.column("prompt_ids"))).as_py()
        completion = config.setting("max_completion_length", in_evaluation)
        needed.append(longest + completion)
        if room is not None and longest + completion > room:
            own = in_evaluation and config.eval_max_completion_length is not None
            flag = "eval_max_completion_length" if own else "max_completion_length"
            left = room - completion
            shorter = f", or give --max_prompt_tokens {left} with --long_prompts drop"
            raise UserError(
                f"the longest prompt has {longest:,} tokens; with {flag} {completion:,} that is more than the {room:,} "
                f"that {who} has room for; "
                + (f"lower --{flag}{shorter}" if left > 0 else f"give --{flag} {max(1, room - longest)} at most"),
                "troubleshooting.md#generation",
            )
    known = [one for one in needed if one is not None]
    return max(known) if known and len(known) == len(needed) else None


def _limit_prompts(config: PolicyConfig, stream: Stream, room: int | None, who: str) -> None:
    """Of prompts that are still to be read, each is compared with the room when it comes."""
    if room is None:
        return
    left, longest = room - config.max_completion_length, config.max_prompt_tokens
    if longest is None and left > 0:
        stream.options = dataclasses.replace(stream.options, max_length=left)
    elif (longest or 1) > left:
        raise UserError(
            f"max_completion_length {config.max_completion_length:,} and prompts of up to {longest or 1:,} tokens are "
            f"more than the {room:,} that {who} has room for; lower --max_completion_length or "
            "--max_prompt_tokens",
            "troubleshooting.md#generation",
        )
