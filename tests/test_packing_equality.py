"""Packed = padded = one sequence at a time, and a shared prompt = one for each completion; values and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import FAMILIES, VOCAB, make
from torch import nn

from posttrain.batch import NO_PARENT, PackedBatch, pack
from posttrain.models import checkpoint_activations
from posttrain.scoring import Scorer

Sequences = list[tuple[list[int], list[list[int]]]]


@pytest.fixture(scope="module")
def trees() -> Sequences:
    """Prompts with two completions each, longer than the sliding window of 4; one completion is a single token."""
    draw = np.random.default_rng(0)

    def some(n: int) -> list[int]:
        return [int(token) for token in draw.integers(3, VOCAB, n)]

    return [(some(9), [some(6), some(3)]), (some(2), [some(1), some(11)]), (some(14), [some(5), some(7)])]


def shared(trees: Sequences) -> PackedBatch:
    ids, masks, parents = [], [], []
    for prompt, completions in trees:
        parent = len(ids)
        ids.append(np.array(prompt))
        masks.append(np.zeros(len(prompt), dtype=np.int8))
        parents.append(NO_PARENT)
        for completion in completions:
            ids.append(np.array(completion))
            masks.append(np.ones(len(completion), dtype=np.int8))
            parents.append(parent)
    return pack(ids, masks, parents, num_groups=len(trees))


def unshared(trees: Sequences) -> list[PackedBatch]:
    """Each completion with its own copy of the prompt, as a batch of one."""
    batches = []
    for prompt, completions in trees:
        for completion in completions:
            mask = np.array([0] * len(prompt) + [1] * len(completion))
            batches.append(pack([np.array(prompt + completion)], [mask], [NO_PARENT], num_groups=1))
    return batches


def score(model: nn.Module, scorer: Scorer, batches: list[PackedBatch]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Statistics (N, 5) over all batches, and the gradients of a loss that weighs every target differently."""
    model.zero_grad()
    table = torch.cat([torch.stack(scorer(model, batch, with_entropy_gradient=True)[:5], dim=1) for batch in batches])
    weights = torch.linspace(0.5, 1.5, table.shape[0])
    (table[:, 0] * weights + 0.3 * table[:, 1] * weights).sum().backward()
    return table.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def from_plain_logits(model: nn.Module, batches: list[PackedBatch]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The same by the book: whole logits of one sequence at a time."""
    model.zero_grad()
    rows = []
    for batch in batches:
        log_p = (
            model(input_ids=batch.input_ids[None], use_cache=False).logits[0, batch.target_positions].log_softmax(-1)
        )
        own = log_p[torch.arange(len(log_p)), batch.target_ids]
        entropy = -(log_p.exp() * log_p).sum(-1)
        rows.append(torch.stack([own, entropy], dim=1))
    table = torch.cat(rows)
    weights = torch.linspace(0.5, 1.5, table.shape[0])
    (table[:, 0] * weights + 0.3 * table[:, 1] * weights).sum().backward()
    return table.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def assert_same(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(actual) == len(expected) > 0
    scale = max(float(gradient.abs().max()) for gradient in expected)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_way_gives_the_same(family: str, trees: Sequences) -> None:
    model = make(family)
    expected, expected_gradients = from_plain_logits(model, unshared(trees))
    scorer = Scorer(model)
    assert scorer.packed == FAMILIES[family][1]
    padded = Scorer(model, packed=False)
    for way, batches in {
        "shared": [shared(trees)],
        "unshared": unshared(trees),
    }.items():
        table, gradients = score(model, scorer, batches)
        torch.testing.assert_close(table[:, :2], expected, rtol=1e-5, atol=1e-5, msg=lambda m, way=way: f"{way}: {m}")
        assert_same(gradients, expected_gradients)
    table, gradients = score(model, padded, [shared(trees)])
    torch.testing.assert_close(table[:, :2], expected, rtol=1e-5, atol=1e-5)
    assert_same(gradients, expected_gradients)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3, sliding window", "mixtral", "bamba, hybrid"])
def test_gradient_checkpointing_changes_nothing(family: str, trees: Sequences) -> None:
    model = make(family)
    scorer = Scorer(model)
    model.train()
    table, gradients = score(model, scorer, [shared(trees)])
    checkpoint_activations(model, on=True)
    again, recomputed = score(model, scorer, [shared(trees)])
    assert torch.equal(table, again)
    assert_same(recomputed, gradients)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft, of transformers
@pytest.mark.parametrize("family", ["qwen2", "phi3, fused projections", "bamba, hybrid"])
def test_lora(family: str, trees: Sequences) -> None:
    from peft import LoraConfig, get_peft_model

    def adapted() -> tuple[nn.Module, Scorer]:
        model = make(family)
        scorer = Scorer(model)
        torch.manual_seed(1)
        wrapped = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
        return wrapped.eval(), scorer

    model, scorer = adapted()
    bare = make(family)
    expected, expected_gradients = from_plain_logits(model, unshared(trees))
    table, gradients = score(model, scorer, [shared(trees)])
    torch.testing.assert_close(table[:, :2], expected, rtol=1e-5, atol=1e-5)
    assert_same(gradients, expected_gradients)
    with torch.no_grad(), model.disable_adapter():
        without = scorer(model, shared(trees)).logprobs
    with torch.no_grad():
        plain = Scorer(bare)(bare, shared(trees)).logprobs
    torch.testing.assert_close(without, plain, rtol=1e-6, atol=1e-6)
    assert (without - table[:, 0]).abs().max() > 0.1


def test_a_mixture_of_experts_says_how_its_router_balances(trees: Sequences) -> None:
    model = make("mixtral")
    scorer = Scorer(model)
    assert scorer(model, shared(trees)).router_loss is None
    model.config.output_router_logits = True
    router_loss = scorer(model, shared(trees)).router_loss
    assert router_loss is not None and router_loss.requires_grad and router_loss.item() > 0


def test_documents_do_not_see_each_other() -> None:
    """Changing one document of a row leaves the log-probs of the other, bit for bit."""
    model = make("llama")
    scorer = Scorer(model)
    first, second = np.arange(3, 12), np.arange(20, 27)
    mask_a, mask_b = np.ones(9, dtype=np.int8), np.ones(7, dtype=np.int8)
    mask_a[0] = mask_b[0] = 0
    with torch.no_grad():
        before = scorer(model, pack([first, second], [mask_a, mask_b], [NO_PARENT] * 2, 2)).logprobs
        after = scorer(model, pack([first + 40, second], [mask_a, mask_b], [NO_PARENT] * 2, 2)).logprobs
    assert torch.equal(before[8:], after[8:])
    assert not torch.equal(before[:8], after[:8])


def test_generation_is_that_of_sdpa() -> None:
    """Outside training batches the model behaves as with transformers' own attention, left padding included."""
    model = make("qwen2")
    ids = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    before = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    Scorer(model)
    assert model.config._attn_implementation == "posttrain"
    after = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    assert torch.equal(before, after)
