"""Where the time of a DPO step goes: forward and backward pass over 8 pairs of random tokens, by torch's profiler."""

import numpy as np
import torch
from material import VOCABULARY, make_model, make_tokenizer
from torch.profiler import ProfilerActivity, profile

from posttrain.batch import NO_PARENT, PackedBatch, pack
from posttrain.scoring import Scorer


def random_pairs(count: int) -> PackedBatch:
    """Prompts of 40 to 260 tokens, completions of 20 to 100."""
    draw = np.random.default_rng(0)
    ids: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    parents: list[int] = []
    for _ in range(count):
        prompt = len(ids)
        for parent, low, high in ((NO_PARENT, 40, 260), (prompt, 20, 100), (prompt, 20, 100)):
            length = int(draw.integers(low, high))
            ids.append(draw.integers(4, VOCABULARY, length))
            masks.append(np.full(length, parent != NO_PARENT, dtype=np.int8))
            parents.append(parent)
    return pack(ids, masks, parents, num_groups=count)


def main() -> None:
    model = make_model(make_tokenizer(["a text"]))
    scorer, batch = Scorer(model), random_pairs(8)
    model.train()
    print(f"{len(batch.input_ids)} tokens, {batch.num_targets} targets, {torch.get_num_threads()} threads")
    for _ in range(3):
        scorer(model, batch).logprobs.sum().backward()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        scorer(model, batch).logprobs.sum().backward()
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=48))


if __name__ == "__main__":
    main()
