"""The logits of all targets are never held at once: no tensor of a training step is larger than its bounds, with the
vocabulary of Qwen2.5."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from families import SHAPE
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen2Config, Qwen2ForCausalLM

from posttrain.batch import NO_PARENT, PackedBatch, pack
from posttrain.logprobs import CHUNK_ELEMENTS, LEAST_TARGETS, TokenStatistics, targets_at_once
from posttrain.losses.sft import sft_loss
from posttrain.scoring import Scorer

VOCABULARY, WIDTH, TARGETS = 151_936, 32, 160


class Largest(TorchDispatchMode):
    """Numbers of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [one.numel() for one in tree_leaves(result) if isinstance(one, torch.Tensor)]
        self.numbers = max(self.numbers, *sizes, 0)
        return result


Score = Callable[[PackedBatch, TokenStatistics], torch.Tensor]


def of_sft(batch: PackedBatch, statistics: TokenStatistics) -> torch.Tensor:
    loss = sft_loss(statistics.logprobs, statistics.entropy, statistics.is_argmax, "nll")
    return loss.terms[0].sum


def of_pairs(batch: PackedBatch, statistics: TokenStatistics) -> torch.Tensor:
    sums = torch.zeros(batch.num_sequences).index_add(0, batch.sequence_ids, statistics.logprobs)
    return -torch.nn.functional.logsigmoid(0.1 * (sums[0::2] - sums[1::2])).sum()


def of_policy(batch: PackedBatch, statistics: TokenStatistics) -> torch.Tensor:
    return -(statistics.logprobs.exp() + 0.01 * statistics.entropy).sum()


def batch_of(children: int) -> PackedBatch:
    """A document of so many targets, or a prompt with as many in its completions."""
    if not children:
        mask = np.ones(TARGETS + 1, dtype=np.int8)
        mask[0] = 0
        return pack([np.arange(TARGETS + 1) * 37], [mask], [NO_PARENT], num_groups=1)
    lengths = [10] + [TARGETS // children] * children
    masks = [np.full(n, i > 0, dtype=np.int8) for i, n in enumerate(lengths)]
    return pack([np.arange(n) * 37 for n in lengths], masks, [NO_PARENT] + [0] * children, num_groups=1)


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("children", "score", "with_entropy"), [(0, of_sft, False), (2, of_pairs, False), (8, of_policy, True)]
)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft, of transformers
def test_no_tensor_is_larger_than_a_chunk_or_the_head(
    children: int, score: Score, with_entropy: bool, tied: bool, adapted: bool
) -> None:
    shape = SHAPE | {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 1}
    model: Any = Qwen2ForCausalLM(Qwen2Config(**shape, tie_word_embeddings=tied))
    scorer = Scorer(model)
    assert scorer.head is not None
    if adapted:
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    model.train()
    batch = batch_of(children)
    assert batch.num_targets == TARGETS
    chunk = VOCABULARY * max(targets_at_once("cpu", VOCABULARY))
    with Largest() as found:
        score(batch, scorer(model, batch, with_entropy_gradient=with_entropy)).backward()
    # The head's own gradient is as large as the head, unless it is frozen.
    bound = chunk if adapted else max(chunk, VOCABULARY * WIDTH)
    assert chunk <= found.numbers <= bound < VOCABULARY * TARGETS / 4


def test_a_chunk_is_a_few_targets_of_a_large_vocabulary() -> None:
    assert targets_at_once("cpu", VOCABULARY) == (LEAST_TARGETS, LEAST_TARGETS)
    assert targets_at_once("cpu", 512) == tuple(elements // 512 for elements in CHUNK_ELEMENTS["cpu"])
    assert targets_at_once("cuda", VOCABULARY) == (2**26 // VOCABULARY,) * 2
