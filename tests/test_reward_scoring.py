"""Scores at the ends of sequences: packed = padded = one at a time, for values and gradients, whatever the family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from families import FAMILIES, VOCAB, make
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification, PreTrainedModel

from posttrain.batch import NO_PARENT, PackedBatch, pack
from posttrain.errors import UserError
from posttrain.model_check import FAMILIES as NAMED
from posttrain.models import checkpoint_activations
from posttrain.reward_model import load_sequence_classifier
from posttrain.reward_scoring import RewardScorer, ScoreHead

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # peft, of transformers
)

WITHOUT = {"granite, scaled logits", "mamba2, recurrent", "bamba, hybrid"}  # transformers has no classifier for them


def some(draw: np.random.Generator, n: int) -> np.ndarray:
    return draw.integers(3, VOCAB, n)


def batch_of_pairs(seed: int = 0) -> tuple[PackedBatch, list[np.ndarray]]:
    """Prompts with two completions each, longer than the sliding window of 4, and the same sequences one by one."""
    draw = np.random.default_rng(seed)
    ids, parents, whole = [], [], []
    for prompt, *completions in ((9, 6, 3), (2, 1, 11), (14, 5, 7)):
        parent = len(ids)
        ids.append(some(draw, prompt))
        parents.append(NO_PARENT)
        for length in completions:
            ids.append(some(draw, length))
            parents.append(parent)
            whole.append(np.concatenate([ids[parent], ids[-1]]))
    return pack(ids, [np.zeros(len(part), dtype=np.int8) for part in ids], parents, num_groups=3), whole


def classifier(family: str, folder: Path) -> PreTrainedModel:
    """A classifier made of a family's language model, its head with weights large enough to matter."""
    make(family).save_pretrained(folder)
    torch.manual_seed(1)
    model = load_sequence_classifier(str(folder), torch.float32, may_have_new_head=True)
    nn.init.normal_(model.score.weight)
    return model.eval()


def gradients(model: nn.Module, scores: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    (scores * torch.linspace(0.5, 1.5, len(scores))).sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def assert_same(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(actual) == len(expected) > 0
    scale = max(float(gradient.abs().max()) for gradient in expected)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in WITHOUT])
def test_every_way_gives_the_same(family: str, tmp_path: Path) -> None:
    model = classifier(family, tmp_path)
    batch, whole = batch_of_pairs()
    expected = torch.cat([model(torch.from_numpy(ids)[None]).logits[:, 0] for ids in whole])
    expected_gradients = gradients(model, expected)
    assert expected.std() > 0.1
    scorer, padded = RewardScorer(model), RewardScorer(model, packed=False)
    assert scorer.packed == FAMILIES[family][1] and scorer.has_head and padded.has_head and not padded.packed
    for way in (scorer, padded):
        scores = way(model, batch)
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
        assert_same(gradients(model, scores), expected_gradients)


@pytest.mark.parametrize("family", sorted(WITHOUT))
def test_a_family_without_classifiers_is_named(family: str, tmp_path: Path) -> None:
    make(family).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no sequence classifier for models of the type (granite|mamba2|bamba)"):
        load_sequence_classifier(str(tmp_path), may_have_new_head=True)


def test_families_in_the_message_have_classifiers() -> None:
    known = {config.model_type for config in AutoModelForSequenceClassification._model_mapping}
    assert set(NAMED) <= known


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    model = classifier("llama", tmp_path)
    scorer = RewardScorer(model)
    batch, _ = batch_of_pairs()
    model.train()
    scores = scorer(model, batch)
    expected = gradients(model, scores)
    checkpoint_activations(model, on=True)
    again = scorer(model, batch)
    assert torch.equal(scores, again)
    assert_same(gradients(model, again), expected)


def test_the_copy_of_the_head_that_peft_trains_is_the_one_that_scores(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = classifier("qwen2", tmp_path)
    scorer = RewardScorer(model)
    batch, _ = batch_of_pairs()
    before = scorer(model, batch)
    wrapped = get_peft_model(model, LoraConfig(r=4, task_type="SEQ_CLS"))
    torch.testing.assert_close(scorer(wrapped, batch), before)
    trained = {name: p for name, p in wrapped.named_parameters() if p.requires_grad and "score" in name}
    (weight,) = trained.values()
    with torch.no_grad():
        weight.mul_(2)
    torch.testing.assert_close(scorer(wrapped, batch), 2 * before)
    scorer(wrapped, batch).sum().backward()
    assert weight.grad is not None and weight.grad.abs().max() > 0


def test_a_classifier_that_looks_both_ways_goes_its_own_way() -> None:
    """An encoder pools by its first token: padded rows, and nothing of it is exchanged."""
    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_labels=1,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    model = BertForSequenceClassification(config).eval()
    batch, whole = batch_of_pairs()
    scorer = RewardScorer(model)
    assert not scorer.packed and not scorer.has_head
    expected = torch.cat([model(torch.from_numpy(ids)[None]).logits[:, 0] for ids in whole])
    torch.testing.assert_close(scorer(model, batch), expected, rtol=1e-5, atol=1e-5)


def test_the_model_answers_as_ever_without_a_scorer(tmp_path: Path) -> None:
    """Before and after, an ordinary call with padding gives what transformers' own layer gives."""
    model = classifier("llama", tmp_path)
    rows = torch.tensor([[5, 6, 7, 0], [8, 9, 10, 11]])
    before = model(rows).logits
    RewardScorer(model)
    assert type(model.score) is ScoreHead and list(model.score.state_dict()) == ["weight"]
    assert model(rows).logits.shape == (2, 1)
    torch.testing.assert_close(model(rows).logits, before)


def test_scores_in_half_precision_are_summed_in_float32(tmp_path: Path) -> None:
    model = classifier("llama", tmp_path)
    scorer = RewardScorer(model)
    batch, _ = batch_of_pairs()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores = scorer(model, batch)
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float())


def test_a_reward_model_without_a_head_is_refused_for_scoring(tmp_path: Path) -> None:
    make("llama").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"--reward_model_name_or_path .* has no score head"):
        load_sequence_classifier(str(tmp_path))
