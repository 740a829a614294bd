"""What the exchanged RMSNorm gains: transformers' class and ours in turn, alone and in whole passes of a model."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from posttrain.batch import NO_PARENT, pack
from posttrain.scoring import Scorer

DOCUMENTS, LENGTH = 8, 224


def main() -> None:
    """Print a line for each comparison: seconds of the processor, and the median ratio of pairs."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--material", type=Path, required=True, help="folder that material.py has written")
    parser.add_argument("--pairs", type=int, default=20)
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.material / "model")
    scorer = Scorer(model)
    norms = [module for module in model.modules() if getattr(module, "is_exchanged", False)]
    ours = type(norms[0])
    masks = [np.arange(LENGTH).clip(max=1).astype(np.int8) for _ in range(DOCUMENTS)]
    ids = [np.arange(3, 3 + LENGTH) * (i + 5) % model.config.vocab_size for i in range(DOCUMENTS)]
    batch = pack(ids, masks, [NO_PARENT] * DOCUMENTS, num_groups=DOCUMENTS)
    x = torch.randn(1, DOCUMENTS * LENGTH, model.config.hidden_size, requires_grad=True)

    def passes(autocast: bool) -> None:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = scorer(model, batch).logprobs.mean()
        loss.backward()

    runs: dict[str, Callable[[], None]] = {
        "a norm, forward and backward": lambda: norms[0](x).sum().backward(),
        "a model, float32": lambda: passes(False),
        "a model, bf16": lambda: passes(True),
    }
    for name, run in runs.items():
        times: list[tuple[float, float]] = []
        for _ in range(args.pairs + 2):
            pair = []
            for kind in (ours.__base__, ours):
                for norm in norms:
                    norm.__class__ = kind  # type: ignore[assignment]
                began = time.process_time()
                run()
                pair.append(time.process_time() - began)
            times.append((pair[0], pair[1]))
        before, after = (statistics.median(side) for side in zip(*times[2:], strict=True))
        ratio = statistics.median(a / b for a, b in times[2:])
        print(f"{name}: {before * 1e3:.2f} → {after * 1e3:.2f} ms, {ratio:.2f} times as fast")


if __name__ == "__main__":
    main()
