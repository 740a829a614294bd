"""The engine over whole models: log-probs against a fresh forward pass, and what ends, leaves and is put back."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, VOCAB, make
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationConfig, RepetitionPenaltyLogitsProcessor

from posttrain.batch import NO_PARENT, PackedBatch, pack
from posttrain.models import checkpoint_activations, match_tokenizer
from posttrain.rollout import engine as engine_module
from posttrain.rollout.engine import Completions, Engine, Sampling, uniforms
from posttrain.rollout.engines import eos_token_ids
from posttrain.scoring import Scorer

PROMPTS = [np.arange(3, 12), np.array([40]), np.arange(60, 80, 4)]
G, LENGTH = 4, 20
ENDS = (2, 7, 9, 11, 13, 17)


def parts(family: str) -> tuple[Any, Scorer, Engine]:
    model = make(family)
    scorer = Scorer(model)
    return model, scorer, Engine(model, scorer)


def sampling(**changes: Any) -> Sampling:
    return Sampling(**({"max_new_tokens": LENGTH, "eos_token_ids": ENDS} | changes))


def sample(model: nn.Module, engine: Engine, prompts: list[np.ndarray] = PROMPTS, **changes: Any) -> Completions:
    how = sampling(**changes)
    return engine.generate(model, prompts, G, how, uniforms(5, range(len(prompts) * G), how.max_new_tokens))


def batch_of(completions: Completions, prompts: list[np.ndarray] = PROMPTS) -> PackedBatch:
    ids, masks, parents = [], [], []
    for i, prompt in enumerate(prompts):
        ids += [prompt, *completions.token_ids[G * i : G * i + G]]
        parents += [NO_PARENT] + [len(parents)] * G
    masks = [np.full(len(row), parent != NO_PARENT) for row, parent in zip(ids, parents, strict=True)]
    return pack(ids, masks, parents, len(prompts))


def fresh_logprobs(model: nn.Module, scorer: Scorer, completions: Completions, temperature: float = 1.0) -> np.ndarray:
    with torch.no_grad():
        return scorer(model, batch_of(completions), temperature).logprobs.numpy()


def assert_same_tokens(one: Completions, other: Completions) -> None:
    for a, b in zip(one.token_ids, other.token_ids, strict=True):
        assert np.array_equal(a, b)
    for a, b in zip(one.logprobs, other.logprobs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    assert np.array_equal(one.ended, other.ended)


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_are_those_of_a_fresh_forward_pass(family: str) -> None:
    model, scorer, engine = parts(family)
    assert engine.packed == FAMILIES[family][1]
    completions = sample(model, engine, temperature=1.2)
    assert completions.policy_logprobs is completions.logprobs
    assert len({len(ids) for ids in completions.token_ids}) > 3  # rows leave at different times
    drawn = np.concatenate(completions.logprobs)
    assert drawn.dtype == np.float32 and completions.token_ids[0].dtype == np.int64
    np.testing.assert_allclose(drawn, fresh_logprobs(model, scorer, completions, 1.2), atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma3, sliding window", "gpt2, learned positions", "mixtral"])
def test_both_ways_draw_the_same(family: str) -> None:
    """Decoding by segments, and transformers' generate with left padding."""
    model, _, engine = parts(family)
    changes = {"temperature": 0.9, "top_k": 40, "repetition_penalty": 1.1}
    packed = sample(model, engine, **changes)
    engine.packed = False
    assert_same_tokens(packed, sample(model, engine, **changes))


@pytest.mark.parametrize(
    "family",
    ["qwen2", "gemma3, sliding window", "gpt2, learned positions", "phi3, fused projections", "mamba2, recurrent"],
)
def test_prompts_together_or_one_by_one(family: str) -> None:
    model, _, engine = parts(family)
    together = sample(model, engine)
    numbers = uniforms(5, range(len(PROMPTS) * G), LENGTH)
    for i, prompt in enumerate(PROMPTS):
        rows = slice(G * i, G * i + G)
        alone = engine.generate(model, [prompt], G, sampling(), numbers[rows])
        expected = Completions(together.token_ids[rows], together.logprobs[rows], [], together.ended[rows])
        assert_same_tokens(alone, expected)


def test_when_rows_leave_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, engine = parts("qwen3")
    completions = sample(model, engine)
    for share in (0.0, 1.0):
        monkeypatch.setattr(engine_module, "_LEAVE_AT", share)
        assert_same_tokens(sample(model, engine), completions)
    monkeypatch.setattr("posttrain.rollout.record._CHECK_EVERY", {"cpu": 7})
    assert_same_tokens(sample(model, engine), completions)


@pytest.mark.parametrize("family", ["llama", "gemma2, soft caps"])
def test_what_ends_a_completion(family: str) -> None:
    model, _, engine = parts(family)
    completions = sample(model, engine)
    endless = sample(model, engine, eos_token_ids=())
    assert not endless.ended.any() and {len(ids) for ids in endless.token_ids} == {LENGTH}
    assert 0 < completions.ended.sum() < len(completions.ended)
    assert len({ids[-1] for ids, ended in zip(completions.token_ids, completions.ended, strict=True) if ended}) > 1
    for ids, whole, ended, logprobs in zip(
        completions.token_ids, endless.token_ids, completions.ended, completions.logprobs, strict=True
    ):
        places = np.flatnonzero(np.isin(whole, ENDS))
        assert ended == bool(len(places))
        assert np.array_equal(ids, whole[: places[0] + 1] if ended else whole)
        assert len(logprobs) == len(ids)


@pytest.mark.parametrize("family", ["llama", "bamba, hybrid"])
def test_the_smallest_cases(family: str) -> None:
    """One token of prompt, one completion, one token; and all rows ending at once."""
    model, _, engine = parts(family)
    one = engine.generate(model, [np.array([5])], 1, sampling(max_new_tokens=1), np.array([[0.5]]))
    assert [len(ids) for ids in one.token_ids] == [1]
    all_at_once = sample(model, engine, eos_token_ids=tuple(range(VOCAB)))
    assert {len(ids) for ids in all_at_once.token_ids} == {1} and all_at_once.ended.all()


@pytest.mark.parametrize("family", ["qwen2", "gemma2, soft caps"])
def test_log_probs_of_a_changed_distribution(family: str) -> None:
    """Penalty and truncation, against transformers' own penalty over logits of a fresh pass; at temperature 0 too."""
    model, scorer, engine = parts(family)
    completions = sample(model, engine, repetition_penalty=1.5, temperature=0.8, top_p=0.95)
    policy = np.concatenate(completions.policy_logprobs)
    np.testing.assert_allclose(policy, fresh_logprobs(model, scorer, completions, 0.8), atol=1e-4)
    greedy = sample(model, engine, repetition_penalty=1.5, temperature=0.0)
    penalty = RepetitionPenaltyLogitsProcessor(1.5)
    for row, ids in enumerate(greedy.token_ids):
        whole = torch.from_numpy(np.concatenate([PROMPTS[row // G], ids]))[None]
        start = whole.shape[1] - len(ids)
        with torch.no_grad():
            logits = model(whole).logits[0]
        for i, token in enumerate(ids):
            scores = penalty(whole[:, : start + i], logits[None, start + i - 1].clone())[0].log_softmax(-1)
            assert scores.argmax() == token
            assert abs(scores[token].item() - greedy.logprobs[row][i]) < 1e-4


def test_draws_follow_the_models_distribution() -> None:
    """First tokens of 4,000 completions, against the softmax of a plain forward pass, and not against another's."""
    model, _, engine = parts("llama")
    prompt = np.array([3, 5, 8])
    completions = engine.generate(model, [prompt], 4000, sampling(max_new_tokens=1), uniforms(1, range(4000), 1))
    counts = np.bincount(np.concatenate(completions.token_ids), minlength=VOCAB)
    with torch.no_grad():
        logits = model(torch.from_numpy(prompt)[None]).logits[0, -1].double()

    def chi_square(p: np.ndarray) -> float:
        likely = p * 4000 > 5
        kept = np.append(counts[likely], counts[~likely].sum()), np.append(p[likely], p[~likely].sum()) * 4000
        return float(((kept[0] - kept[1]) ** 2 / kept[1]).sum() / len(kept[0]))

    assert chi_square(logits.softmax(-1).numpy()) < 1.7
    assert chi_square((logits / 1.2).softmax(-1).numpy()) > 1.7


def test_the_model_is_put_back_as_it_was() -> None:
    model, scorer, engine = parts("llama")
    quiet = sample(model, engine)
    model.train()
    model.model.norm.eval()
    checkpoint_activations(model, on=True)
    model.model.layers[0].self_attn.attention_dropout = 0.5
    assert_same_tokens(sample(model, engine), quiet)
    assert model.training and model.model.layers[1].training and not model.model.norm.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.model.layers[0].self_attn.attention_dropout = 0.0
    scorer(model, batch_of(quiet)).logprobs.sum().backward()
    assert model.lm_head.weight.grad is not None


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft, of transformers
@pytest.mark.parametrize("family", ["qwen2", "phi3, fused projections", "gemma2, soft caps"])
def test_lora(family: str) -> None:
    from peft import LoraConfig, get_peft_model

    model, scorer, engine = parts(family)
    before = sample(model, engine)
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    wrapped.train()
    completions = sample(wrapped, engine)
    wrapped.eval()
    fresh = fresh_logprobs(wrapped, scorer, completions)
    np.testing.assert_allclose(np.concatenate(completions.logprobs), fresh, atol=1e-4)
    assert any(len(a) != len(b) or (a != b).any() for a, b in zip(completions.token_ids, before.token_ids, strict=True))


@pytest.mark.parametrize("family", ["llama", "phi3, fused projections", "gemma2, soft caps"])
def test_ddp(family: str) -> None:
    model, _, engine = parts(family)
    expected = sample(model, engine)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        assert_same_tokens(sample(nn.parallel.DistributedDataParallel(model), engine), expected)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("family", ["llama", "phi3, fused projections"])
def test_a_compiled_model_is_not_compiled_for_every_length(family: str) -> None:
    model, _, engine = parts(family)
    expected = sample(model, engine)
    compiled: Any = torch.compile(model, backend=lambda *_: pytest.fail("compiled"))
    assert_same_tokens(sample(compiled, engine), expected)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3, sliding window"])
def test_in_half_precision(family: str) -> None:
    """Weights in bfloat16, and autocast over float32 ones, within the rounding of bfloat16."""
    model, scorer, engine = parts(family)
    autocast = torch.autocast("cpu", torch.bfloat16)
    completions = engine.generate(model, PROMPTS, G, sampling(), uniforms(5, range(12), LENGTH), autocast)
    with torch.autocast("cpu", torch.bfloat16):
        fresh = fresh_logprobs(model, scorer, completions)
    error = np.abs(np.concatenate(completions.logprobs) - fresh)
    assert 0 < error.mean() < 0.05
    half = copy.deepcopy(make(family)).to(torch.bfloat16)
    half_scorer = Scorer(half)
    half_engine = Engine(half, half_scorer)
    assert half_engine.packed == half_scorer.packed
    completions = sample(half, half_engine)
    error = np.abs(np.concatenate(completions.logprobs) - fresh_logprobs(half, half_scorer, completions))
    assert error.mean() < 0.05


class Casts(TorchDispatchMode):
    """Counts tensors of two dimensions that are cast to half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.of_weights: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].ndim == 2 and kwargs.get("dtype") == torch.bfloat16:
            self.of_weights[args[0].data_ptr()] += 1
        return func(*args, **kwargs)


def test_weights_are_cast_once_whether_they_are_trained_or_not() -> None:
    model, _, engine = parts("qwen2")
    engine.writes_out = False
    frozen = model.model.layers[0].requires_grad_(False)
    how = sampling()
    numbers, half = uniforms(5, range(len(PROMPTS) * G), how.max_new_tokens), torch.autocast("cpu", torch.bfloat16)
    with Casts() as casts:
        engine.generate(model, PROMPTS, G, how, numbers, half)
    weights = {m.weight.data_ptr() for m in model.modules() if isinstance(m, nn.Linear)}
    assert {where: count for where, count in casts.of_weights.items() if where in weights} == dict.fromkeys(weights, 1)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


@pytest.mark.parametrize("family", ["llama", "gemma3, sliding window"])
def test_prompts_are_filled_up_where_products_are_compiled_for_their_sizes(family: str) -> None:
    model, _, engine = parts(family)
    widths: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    sample(model, engine)
    assert widths[0] == sum(len(prompt) for prompt in PROMPTS)
    widths.clear()
    autocast = torch.autocast("cpu", torch.bfloat16)
    filled = engine.generate(model, PROMPTS, G, sampling(), uniforms(5, range(12), LENGTH), autocast)
    assert widths[0] == 64
    one_more = [np.array([5] * 49), *PROMPTS]  # 64 with the others: nothing is missing
    numbers = np.concatenate([uniforms(6, range(G), LENGTH), uniforms(5, range(12), LENGTH)])
    widths.clear()
    full = engine.generate(model, one_more, G, sampling(), numbers, autocast)
    assert widths[0] == 64
    for one, other in zip(filled.logprobs, full.logprobs[G:], strict=True):
        assert abs(one[0] - other[0]) < 0.05


def test_the_models_own_generation_config_has_no_say() -> None:
    model, _, engine = parts("gemma2, soft caps")
    expected = sample(model, engine)
    own = GenerationConfig(repetition_penalty=5.0, suppress_tokens=list(range(50)), max_length=3, min_new_tokens=15)
    model.generation_config = own
    assert_same_tokens(sample(model, engine), expected)
    assert model.generation_config is own


def test_a_model_whose_decoding_differs_is_found_out(caplog: pytest.LogCaptureFixture) -> None:
    """Here one whose forward pass takes no decoding state: the trial sees it and falls back, with one line of log."""

    class Deaf(type(make("llama"))):  # type: ignore[misc]
        def forward(self, *args: Any, decoding: Any = None, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    model = make("llama")
    expected = sample(model, Engine(model, Scorer(model)))
    model.__class__ = Deaf
    scorer = Scorer(model)
    engine = Engine(model, scorer)
    assert scorer.packed and not engine.packed
    assert caplog.text.count("Deaf cannot decode by segments") == 1
    assert_same_tokens(sample(model, engine), expected)


def test_whatever_ended_completions_before_still_does() -> None:
    model = make("llama")
    words = {"pad_token_id": 0, "eos_token_id": 5, "__len__": lambda self: VOCAB, "get_vocab": lambda self: {"a": 0}}
    tokenizer: Any = type("Tokenizer", (), words)()
    model.generation_config.eos_token_id = [2, 5, 7]
    match_tokenizer(model, tokenizer)
    assert model.generation_config.eos_token_id == [5, 2, 7] and model.config.eos_token_id == 5
    assert eos_token_ids(model, tokenizer) == (2, 5, 7)
    model.generation_config.eos_token_id = 2
    match_tokenizer(model, tokenizer)
    assert model.generation_config.eos_token_id == 5
