"""Adapters: what each variant trains and saves, that peft loads the same model again, and mistakes told first."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from safetensors.torch import load_file
from tiny import SIZES, curve, run, run_policy, write_base, write_preference, write_prompts, write_sft
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Qwen2MoeConfig

from posttrain import quantisation, training
from posttrain.adapters import check_adapter
from posttrain.config import CommonConfig, parse_command_line
from posttrain.config.paths import check_model
from posttrain.errors import UserError
from posttrain.models import load_causal_model, loading_options, peft_warnings

MOE = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose output head is not tied to its embeddings."""
    return model_like(write_base(tmp_path_factory.mktemp("tied") / "model"), tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def experts(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts, whose experts' weights are parameters of no layer."""
    config = Qwen2MoeConfig(**SIZES, **MOE, pad_token_id=0)
    return model_like(base, tmp_path_factory.mktemp("experts"), config)


def model_like(other: Path, folder: Path, config: Any = None) -> Path:
    """A random model with another one's tokenizer, and shape where none is given."""
    config = config or AutoConfig.from_pretrained(other)
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(other).save_pretrained(folder)
    return folder


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models that runs of this test end with, in their order."""
    models: list[Any] = []
    save = training.save

    def keep(config: CommonConfig, trainer: Any, *args: Any) -> None:
        models.append(trainer.model)
        save(config, trainer, *args)

    monkeypatch.setattr(training, "save", keep)
    return models


def trainable(model: Any) -> set[str]:
    """The names of what is trained, without numbers of layers and what wraps it all."""
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {re.sub(r"\.\d+\.", ".N.", name.removeprefix("base_model.model.")) for name in names}


def plain(name: str) -> str:
    """The name of a tensor as in `trainable`, without what only a model in memory has in it."""
    name = re.sub(r"\.\d+\.", ".N.", name.removeprefix("base_model.model."))
    return re.sub(r"\.modules_to_save|\.default|\.weight$", "", name)


def same_outputs(model: Any, folder: Path, kind: Any = AutoPeftModelForCausalLM, **options: Any) -> None:
    """The adapter in a folder, on its base, gives what the trained model gives."""
    with peft_warnings():
        again = kind.from_pretrained(folder, **options).eval()
    ids = torch.arange(3, 19).view(2, 8) * 7 % SIZES["vocab_size"]
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, model.eval()(input_ids=ids).logits)


def lora(layers: str, *more: str) -> set[str]:
    """The names of the adapters of some layers of attention and of the parameters besides."""
    parts = [
        f"model.layers.N.self_attn.{layer}.lora_{side}.default.weight" for layer in layers.split() for side in "AB"
    ]
    return {*parts, *more}


MAGNITUDES = {f"model.layers.N.self_attn.{one}.lora_magnitude_vector.default.weight" for one in ("q_proj", "v_proj")}
MLP = {f"model.layers.N.mlp.{one}_proj.lora_{side}.default.weight" for one in ("gate", "up", "down") for side in "AB"}
VARIANTS = {
    "default": ("", lora("q_proj v_proj")),
    "rslora": ("--use_rslora", lora("q_proj v_proj")),
    "dora": ("--use_dora", lora("q_proj v_proj") | MAGNITUDES),
    "named": ("--lora_target_modules k_proj o_proj", lora("k_proj o_proj")),
    "one name": ("--lora_target_modules k_proj", lora("k_proj")),
    "expression": (r"--lora_target_modules .*\.[kv]_proj", lora("k_proj v_proj")),
    "all-linear": ("--lora_target_modules all-linear", lora("q_proj k_proj v_proj o_proj") | MLP),
    "embeddings": (
        "--lora_target_modules embed_tokens",
        {f"model.embed_tokens.lora_embedding_{side}.default" for side in "AB"},
    ),
    "head": (
        "--lora_target_modules q_proj lm_head",
        lora("q_proj", *(f"lm_head.lora_{side}.default.weight" for side in "AB")),
    ),
    "whole modules": (
        "--lora_modules_to_save lm_head model.norm",
        lora(
            "q_proj v_proj",
            "lm_head.modules_to_save.default.weight",
            "model.norm.modules_to_save.default.weight",
        ),
    ),
}


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_trained_is_saved_and_loads_again(variant: str, base: Path, tmp_path: Path, trained: list[Any]) -> None:
    words, expected = VARIANTS[variant]
    flags = ["--use_peft", "--lora_r", "4", "--lora_dropout", "0", *words.split()]
    state = run("sft", base, write_sft(tmp_path / "rows.jsonl"), tmp_path / "out", *flags)
    losses = [loss for (loss,) in curve(state, "loss")]
    assert losses[-1] < losses[0]
    assert trainable(trained[0]) == expected
    saved = {plain(name) for name in load_file(tmp_path / "out" / "adapter_model.safetensors")}
    # peft keeps whole what is embeddings or their like
    kept = {"embeddings": {"model.embed_tokens.base_layer"}, "head": {"lm_head.base_layer"}}.get(variant, set())
    assert saved == {plain(name) for name in expected} | kept
    same_outputs(trained[0], tmp_path / "out")


def test_rank_and_scale_are_those_of_the_flags(base: Path, tmp_path: Path, trained: list[Any]) -> None:
    """LoRA divides alpha by the rank, rsLoRA by its root (arXiv 2312.03732)."""
    rows = write_sft(tmp_path / "rows.jsonl")
    flags = ["--use_peft", "--lora_r", "4", "--lora_alpha", "6", "--lora_dropout", "0.25", "--max_steps", "1"]
    run("sft", base, rows, tmp_path / "a", *flags)
    run("sft", base, rows, tmp_path / "b", *flags, "--use_rslora")
    layers = [model.base_model.model.model.layers[0].self_attn.q_proj for model in trained]
    assert [layer.scaling["default"] for layer in layers] == [6 / 4, 6 / math.sqrt(4)]
    assert [layer.lora_dropout["default"].p for layer in layers] == [0.25, 0.25]
    assert layers[0].lora_A["default"].weight.shape == (4, SIZES["hidden_size"])


def test_parameters_of_experts(experts: Path, tmp_path: Path, trained: list[Any]) -> None:
    """The default dropout gives way, which peft knows none of for them."""
    flags = ["--use_peft", "--lora_r", "2", "--lora_target_parameters", "mlp.experts.gate_up_proj"]
    run("sft", experts, write_sft(tmp_path / "rows.jsonl"), tmp_path / "out", *flags)
    assert trainable(trained[0]) == {f"model.layers.N.mlp.experts.lora_{side}.default.weight" for side in "AB"}
    same_outputs(trained[0], tmp_path / "out")
    check_model("model_name_or_path", str(tmp_path / "out"))  # of as many rows as r and experts make
    load_causal_model(CommonConfig(model_name_or_path=str(tmp_path / "out")), str(tmp_path / "out"))


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("words", ["--lora_modules_to_save lm_head", "--lora_target_modules q_proj lm_head"])
def test_the_reference_of_dpo_is_the_model_without_its_adapter_and_with_its_old_head(
    words: str, base: Path, tmp_path: Path, trained: list[Any]
) -> None:
    """At the first step nothing has moved, and the loss is log 2; then it falls, and so the head is trained."""
    rows = write_preference(tmp_path / "rows.jsonl")
    state = run("dpo", base, rows, tmp_path / "out", "--use_peft", "--lora_dropout", "0", *words.split())
    losses = [loss for (loss,) in curve(state, "loss")]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < 0.69
    same_outputs(trained[0], tmp_path / "out")


def test_a_reward_model_keeps_its_head_beside_other_modules(base: Path, tmp_path: Path, trained: list[Any]) -> None:
    flags = ["--use_peft", "--lora_r", "4", "--lora_modules_to_save", "embed_tokens"]
    run("reward", base, write_preference(tmp_path / "rows.jsonl"), tmp_path / "out", *flags)
    whole = {"score.modules_to_save.default.weight", "model.embed_tokens.modules_to_save.default.weight"}
    assert trainable(trained[0]) == lora("q_proj v_proj", *whole)
    same_outputs(trained[0], tmp_path / "out", AutoPeftModelForSequenceClassification, num_labels=1)


def test_a_policy_with_a_head_of_its_own(base: Path, tmp_path: Path, trained: list[Any]) -> None:
    """Sampled under it, and held to the model without it: before the first step nothing has moved."""
    words = "--use_peft --lora_target_modules all-linear --lora_modules_to_save lm_head --beta 0.1 --lora_dropout 0"
    state = run_policy("grpo", base, write_prompts(tmp_path / "rows.jsonl"), tmp_path / "out", *words.split())
    kl = [value for (value,) in curve(state, "kl")]
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[-1] > 1e-6
    same_outputs(trained[0], tmp_path / "out")


MISTAKES = [
    ("sft", "--lora_target_modules q_proj vproj", "no layer that can be adapted named 'vproj'; did you mean v_proj?"),
    ("sft", "--lora_target_modules qproj", "did you mean q_proj? It has: down_proj, embed_tokens, gate_proj, "),
    ("sft", "--lora_target_modules attn.q_proj", "did you mean self_attn.q_proj?"),
    ("sft", "--lora_target_modules layers", "no layer that can be adapted named 'layers'. It has: down_proj"),
    ("sft", "--lora_target_modules (", "no layer that can be adapted named '('"),
    ("sft", "--lora_modules_to_save lmhead", "--lora_modules_to_save: the model has no module named 'lmhead'; did you"),
    ("sft", "--lora_target_parameters q_proj.weight", "It has: none (layers are for --lora_target_modules)"),
    ("reward", "--lora_target_modules lm_head", "no layer that can be adapted named 'lm_head'"),
    ("grpo", "--lora_target_modules nothing --reward_funcs accuracy_reward", "named 'nothing'. It has: "),
    ("sft", "--load_in_4bit", "--load_in_4bit needs a GPU, and this run has none; leave it out"),
    ("dpo", "--load_in_8bit", "--load_in_8bit needs a GPU, and this run has none; leave it out"),
]


def parse(method: str, model: Path, words: str) -> CommonConfig:
    names = ["--model_name_or_path", str(model), "--dataset_name", "rows.jsonl", "--use_peft"]
    return parse_command_line(method, [*names, *words.split()])[0]


@pytest.mark.parametrize(("method", "words", "expected"), MISTAKES)
def test_mistakes_are_told_without_weights(method: str, words: str, expected: str, base: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((base / "config.json").read_bytes())  # no weights to be loaded here
    with pytest.raises(UserError) as caught:
        check_adapter(parse(method, tmp_path, words))
    assert expected in str(caught.value)


def test_a_run_tells_them_before_it_reads_its_data(base: Path, tmp_path: Path) -> None:
    config = parse("sft", base, f"--lora_target_modules qproj --output_dir {tmp_path}")
    method = type("Nothing", (), {"config": config, "close": lambda self: None})()
    with pytest.raises(UserError, match="did you mean q_proj"):
        training.run(method)


def test_a_family_without_default_targets_is_told_what_to_give(base: Path, tmp_path: Path) -> None:
    FAMILIES["bamba, hybrid"][0]().config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"LoRA does not fit .* see --lora_target_modules"):
        check_adapter(parse("sft", tmp_path, ""))
    check_adapter(parse("sft", tmp_path, "--lora_target_modules all-linear"))
    FAMILIES["mixtral"][0]().config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="; give --lora_dropout 0"):
        check_adapter(parse("sft", tmp_path, "--lora_target_modules all-linear"))
    check_adapter(parse("sft", tmp_path, "--lora_target_modules all-linear --lora_dropout 0"))


def test_quantised_weights(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantisation, "has_gpu", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package bitsandbytes, .*: pip install -e '\.\[quantization\]'"):
        check_adapter(parse("sft", base, "--load_in_4bit"))
    with pytest.raises(UserError, match="needs a GPU"):
        check_adapter(parse("sft", base, "--load_in_4bit --use_cpu"))
    monkeypatch.setattr("transformers.BitsAndBytesConfig", dict)
    words = "--load_in_4bit --bnb_4bit_quant_type fp4 --use_bnb_nested_quant --bnb_4bit_quant_storage uint8"
    options = loading_options(parse("sft", base, f"{words} --dtype bfloat16"))
    assert options["dtype"] == torch.bfloat16
    assert options["quantization_config"] == {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "fp4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.bfloat16,
        "bnb_4bit_quant_storage": "uint8",
    }
    assert loading_options(parse("sft", base, "--load_in_8bit"))["quantization_config"] == {"load_in_8bit": True}


def test_quantised_weights_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: list[Any]) -> None:
    """What bitsandbytes can do without a GPU, where it is installed: the way from the flags to the adapter."""
    modules = pytest.importorskip("bitsandbytes.nn.modules")
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: False)  # packs weights for inference, for good
    monkeypatch.setattr(quantisation, "has_gpu", lambda: True)
    monkeypatch.setitem(SIZES, "hidden_size", 64)  # what is quantised together
    monkeypatch.setitem(SIZES, "intermediate_size", 128)
    model, rows = write_base(tmp_path / "base"), write_sft(tmp_path / "rows.jsonl")
    plain = curve(run("sft", model, rows, tmp_path / "a", "--use_peft"), "loss")
    for name in ("--load_in_4bit", "--load_in_8bit"):
        losses = curve(run("sft", model, rows, tmp_path / name, "--use_peft", name), "loss")
        assert losses != plain
        assert losses == [[pytest.approx(loss, abs=0.02)] for (loss,) in plain]
