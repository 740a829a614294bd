"""A step of sampling that is written out, against the same step through the model's own modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, SHAPE, make
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedModel

from posttrain.rollout import engine as engine_module
from posttrain.rollout import written_out as module
from posttrain.rollout.engine import Completions, Engine, Sampling, uniforms
from posttrain.scoring import Scorer

PROMPTS = [np.arange(3, 12), np.array([40]), np.arange(60, 80, 4)]
G, LENGTH, ENDS = 4, 20, (2, 7, 9, 11)
ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 10000.0}
ROPE |= {"original_max_position_embeddings": 16}
QUIET = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    **{name: FAMILIES[name][0] for name in ("llama", "qwen2", "qwen3")},
    "mistral, window": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=4)),
    "llama, biases, other frequencies": lambda: LlamaForCausalLM(
        LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True, rope_parameters=ROPE, rms_norm_eps=0.1)
    ),
}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the engine is given for its steps."""
    steps: list[Any] = []

    def noted(*args: Any) -> Any:
        steps.append(module.written_out(*args))
        return steps[-1]

    monkeypatch.setattr(engine_module, "written_out", noted)
    return steps


def with_other_weights(model: nn.Module) -> None:
    """Norms and biases that do not stand at one and zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))


def sample(model: nn.Module, engine: Engine, autocast: Any = None) -> Completions:
    return engine.generate(
        model,
        PROMPTS,
        G,
        Sampling(LENGTH, ENDS, temperature=0.9),
        uniforms(5, range(len(PROMPTS) * G), LENGTH),
        autocast,
    )


def both_ways(model: nn.Module, engine: Engine, made: list[Any]) -> tuple[Completions, Completions]:
    """Written out, and through the model's modules."""
    engine.writes_out = True
    written = sample(model, engine)
    assert isinstance(made[-1], module.WrittenOut)
    engine.writes_out = False
    return written, sample(model, engine)


def assert_same(one: Completions, other: Completions) -> None:
    for a, b in zip(one.token_ids, other.token_ids, strict=True):
        assert np.array_equal(a, b)
    np.testing.assert_allclose(np.concatenate(one.logprobs), np.concatenate(other.logprobs), atol=3e-5)


@pytest.mark.parametrize("name", MODELS)
def test_it_draws_what_the_model_draws(name: str, made: list[Any]) -> None:
    model = MODELS[name]().eval()
    with_other_weights(model)
    engine = Engine(model, Scorer(model))
    assert engine.writes_out
    assert_same(*both_ways(model, engine, made))
    with_other_weights(model)  # the next generation has the weights of its time
    assert_same(*both_ways(model, engine, made))


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in MODELS])
def test_models_of_other_kinds_go_through_their_modules(name: str, made: list[Any]) -> None:
    model = make(name)
    engine = Engine(model, Scorer(model))
    sample(model, engine)
    assert made == [None] * len(made)
    assert bool(made) == engine.packed


@QUIET
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", [{"target_modules": "all-linear"}, {"target_modules": ["q_proj", "up_proj"]}])
def test_adapters(changes: dict[str, Any], kind: torch.dtype, made: list[Any]) -> None:
    model = make("qwen2")
    engine = Engine(model, Scorer(model))
    without = sample(model, engine)
    adapters = LoraConfig(r=3, lora_alpha=7, init_lora_weights=False, lora_dropout=0.5, use_rslora=True, **changes)
    wrapped = get_peft_model(model, adapters)
    assert_same(*both_ways(wrapped, engine, made))
    engine.writes_out = True
    with torch.autocast("cpu", kind, enabled=kind != torch.float32):
        with_adapters = sample(wrapped, engine)
        assert made[-1]._layers[0].gates._kind == kind
    assert _distance(wrapped.eval(), with_adapters) < (1e-5 if kind == torch.float32 else 0.1)
    assert any(
        len(a) != len(b) or (a != b).any() for a, b in zip(with_adapters.token_ids, without.token_ids, strict=True)
    )
    with wrapped.disable_adapter():
        assert_same(sample(wrapped, engine), without)
    wrapped.merge_adapter()
    assert_same(*both_ways(wrapped, engine, made))


@pytest.mark.parametrize("in_order", [True, False])
def test_a_small_change_by_adapters_is_not_rounded_away_in_half_precision(
    in_order: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2^-12 beside weights of one, whose neighbours in bfloat16 are 2^-8 and 2^-7 away."""
    from peft.tuners.lora import Linear

    if not in_order:  # as on a CPU for which oneDNN has no kernels of this type
        monkeypatch.setattr(module, "_is_multiplied_by_onednn", lambda kind: False)
    inner, other = nn.Linear(4, 2, bias=False), nn.Linear(4, 1)
    layer = Linear(inner, "default", LoraConfig(), r=1, lora_alpha=1, init_lora_weights=False)
    with torch.no_grad():
        inner.weight.fill_(1.0)
        layer.lora_A["default"].weight.copy_(torch.tensor([2.0**-6, 0.0, 0.0, 0.0]))
        layer.lora_B["default"].weight.fill_(2.0**-6)
        other.weight.fill_(2.0)
        other.bias.fill_(0.5)
    rows = torch.tensor([[1.0, -1.0, 1.0, -1.0], [0.0, 0.0, 1.0, -1.0], [1.0, 0.0, 0.0, 0.0]])  # ones cancel out
    product = module._Product([layer, other], torch.bfloat16)
    assert product(rows).tolist() == [[2.0**-12, 2.0**-12, 0.5], [0.0, 0.0, 0.5], [1.0, 1.0, 2.5]]
    assert module._Product([inner, other], torch.bfloat16)(rows)[0].tolist() == [0.0, 0.0, 0.5]


@pytest.mark.parametrize("name", MODELS)
def test_in_half_precision(name: str, made: list[Any]) -> None:
    """Weights in bfloat16, and autocast over float32 ones: as far from float32 as the model's own modules are."""
    model = MODELS[name]().eval()
    with_other_weights(model)
    scorer = Scorer(model)
    engine = Engine(model, scorer)
    errors = []
    for writes_out in (True, False):
        engine.writes_out = writes_out
        half = sample(model, engine, torch.autocast("cpu", torch.bfloat16))
        errors.append(_distance(model, half))
    assert made[-1]._head._kind == torch.bfloat16
    assert 0 < errors[0] < 2 * errors[1] + 0.01
    rounded = MODELS[name]().eval().to(torch.bfloat16)
    engine = Engine(rounded, Scorer(rounded))
    assert engine.writes_out
    assert _distance(rounded.float(), sample(rounded.to(torch.bfloat16), engine)) < 0.1


def _distance(model: nn.Module, completions: Completions) -> float:
    """Mean distance of log-probs from those of the model in float32."""
    differences = []
    for row, (ids, logprobs) in enumerate(zip(completions.token_ids, completions.logprobs, strict=True)):
        whole = torch.from_numpy(np.concatenate([PROMPTS[row // G], ids]))[None]
        with torch.no_grad():
            logits = model(whole).logits[0, -len(ids) - 1 : -1].float() / 0.9
        expected = logits.log_softmax(-1).gather(1, torch.from_numpy(ids)[:, None])[:, 0]
        differences.append((expected - torch.from_numpy(logprobs)).abs())
    return torch.cat(differences).mean().item()


@QUIET
@pytest.mark.parametrize(
    "what", ["subclass", "hook", "forward", "DoRA", "AdaLoRA", "embedding", "whole head", "frequencies", "size"]
)
def test_what_is_not_known_is_not_written_out(what: str, made: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = make("llama")
    if what == "frequencies":
        rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
        model = LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=rope))
    engine = Engine(model, Scorer(model))
    wrapped: Any = model
    if what == "subclass":
        model.__class__ = type("Other", (type(model),), {})
    elif what == "hook":
        model.model.layers[1].mlp.register_forward_hook(lambda module, args, output: 2 * output)
    elif what == "forward":
        model.model.layers[1].mlp.forward = lambda rows: 2 * rows
    elif what == "DoRA":
        wrapped = get_peft_model(model, LoraConfig(r=2, use_dora=True, target_modules=["q_proj"]))
    elif what == "AdaLoRA":
        wrapped = get_peft_model(model, AdaLoraConfig(target_modules=["q_proj"], total_step=10))
    elif what == "embedding":
        wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["embed_tokens"]))
    elif what == "whole head":
        wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    elif what == "size":
        monkeypatch.setattr(module, "_MOST_WEIGHTS", 1000)
    made.clear()
    sample(wrapped, engine)
    assert made == [None]


def test_a_step_that_differs_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the trial with a few tokens, before anything is sampled."""
    normed = module._normed
    monkeypatch.setattr(module, "_normed", lambda rows, epsilon: 1.01 * normed(rows, epsilon))
    model = make("llama")
    engine = Engine(model, Scorer(model))
    assert engine.packed and not engine.writes_out
