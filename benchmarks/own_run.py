"""A run of `posttrain METHOD` that takes its steps when it is told to, and says what they took:
`python -m benchmarks.own_run SOCKET METHOD --its --flags`, started by in_turn.py.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from posttrain import cli
from posttrain.config import CommonConfig, parse_command_line
from posttrain.errors import report_mistakes
from posttrain.launch import train


def _count(loads: list[dict[str, int]]) -> None:
    """Has what the micro-batches of each step hold appended to a list."""
    from posttrain.batch import NO_PARENT, PackedBatch
    from posttrain.trainer import PostTrainer

    def held(batch: PackedBatch) -> dict[str, int]:
        segments = list(zip(batch.segments.lengths, batch.segments.key_lengths, batch.segments.parents, strict=True))
        forked = [own for own, _, parent in segments if parent != NO_PARENT]
        return {
            "rows": batch.num_groups,
            "tokens": len(batch.input_ids),
            "targets": batch.num_targets,
            "sequences": batch.num_sequences,
            "unshared": batch.num_tokens,
            "padded": batch.num_sequences * max(keys for _, keys, _ in segments),
            "keys": sum(keys for _, keys, parent in segments if parent != NO_PARENT),
            "pairs": sum(own * (keys - own) + own * (own + 1) // 2 for own, keys, _ in segments),
            "longest": max(forked, default=0),
            "grown": sum(own * (own + 1) // 2 for own in forked),
        }

    original = PostTrainer.get_batch_samples

    @functools.wraps(original)
    def counted(self: PostTrainer, *args: Any) -> Any:
        batches, totals = original(self, *args)
        loads.extend(held(batch) for batch in batches)
        return batches, totals

    PostTrainer.get_batch_samples = counted  # type: ignore[method-assign]


def main() -> int:
    address, method, *flags = sys.argv[1:]
    config, launch = parse_command_line(method, flags)

    def run(config: CommonConfig) -> None:
        # These need transformers; they come where posttrain would load it by itself.
        from transformers import trainer as trainer_module

        from benchmarks.turn_taking import TurnTaking

        loads: list[dict[str, int]] = []
        _count(loads)

        def told() -> dict[str, Any]:
            found = list(loads)
            loads.clear()
            return {"loads": found}

        trainer_module.DEFAULT_CALLBACKS.append(TurnTaking(address, told))
        cli._train(config)

    return train(config, launch, ["-m", "benchmarks.own_run", *sys.argv[1:]], run, cli._check_rewards)


if __name__ == "__main__":
    sys.exit(report_mistakes(main))
