"""What is said about a model that does not load: which flag named it, and what to do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_folders import edit_config, edit_weights
from tiny import write_base, write_preference, write_sft
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, Gemma3Config, GPTNeoXConfig, PreTrainedModel

from posttrain.cli import main
from posttrain.config import DPOConfig, RewardConfig
from posttrain.config.model_files import shapes_of
from posttrain.config.paths import check_model
from posttrain.data.tokenizer import load_tokenizer
from posttrain.errors import UserError
from posttrain.model_check import check_models, check_shapes, check_vocabulary
from posttrain.models import load_causal_model, match_tokenizer
from posttrain.reward_model import load_reward_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "model")


def truncated(folder: Path) -> Path:
    """A model whose download ended early."""
    weights = write_base(folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return folder


@pytest.mark.parametrize("method", ["sft", "reward"])
def test_weights_that_are_not_whole(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, write = truncated(tmp_path / "model"), write_sft if method == "sft" else write_preference
    words = ["--model_name_or_path", str(model), "--dataset_name", str(write(tmp_path / "rows.jsonl"))]
    assert main([method, *words, "--output_dir", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert f"--model_name_or_path {model}: a file of its weights is not whole" in message
    assert "copy or download it again" in message and "Traceback" not in message


def test_a_reference_is_named_by_its_own_flag(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference, data = truncated(tmp_path / "reference"), write_preference(tmp_path / "rows.jsonl")
    words = ["--model_name_or_path", str(base), "--ref_model_name_or_path", str(reference), "--dataset_name", str(data)]
    assert main(["dpo", *words, "--output_dir", str(tmp_path / "out"), "--max_steps", "1"]) == 2
    message = capsys.readouterr().err
    assert f"--ref_model_name_or_path {reference}: a file of its weights" in message
    assert "--model_name_or_path" not in message


def test_a_reference_has_a_revision_of_its_own(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def from_pretrained(path: str, revision: str, **options: Any) -> Any:
        asked.append(revision)
        return torch.nn.Linear(1, 1), {"missing_keys": [], "unexpected_keys": []}

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    config = DPOConfig(model_name_or_path=str(base), model_revision="v2")
    load_causal_model(config, str(base))
    load_causal_model(config, str(base), "--ref_model_name_or_path", revision="main")
    assert asked == ["v2", "main"]


def test_what_is_left_out_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Tensors that the model has no place for, a score head for example, and nothing of a layer."""
    model = write_base(tmp_path / "model")
    edit_weights(lambda weights: weights.update({"score.weight": np.ones((1, 32), np.float32)}))(model)
    with caplog.at_level("WARNING", logger="posttrain"):
        load_causal_model(DPOConfig(model_name_or_path=str(model)), str(model))
    assert "not part of the model, and left out: score.weight" in caplog.text


def test_new_special_tokens_get_rows_and_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = write_base(tmp_path / "model")
    config = DPOConfig(model_name_or_path=str(model))
    tokenizer = load_tokenizer(config)
    new = [f"<|{number}|>" for number in range(len(tokenizer), 301)]  # there are 300 embeddings, and fewer words
    tokenizer.add_tokens([AddedToken(token, special=True) for token in new], special_tokens=True)
    with caplog.at_level("WARNING", logger="posttrain"):
        check_vocabulary(config, tokenizer)
    assert "tokens without an embedding, which get new, random ones: <|300|>" in caplog.text
    loaded = load_causal_model(config, str(model))
    match_tokenizer(loaded, tokenizer)
    assert loaded.get_input_embeddings().weight.shape[0] == 301


def neox() -> PreTrainedModel:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    return AutoModelForCausalLM.from_config(GPTNeoXConfig(vocab_size=97, **sizes))


def gemma3_with_eyes() -> PreTrainedModel:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = {**sizes, "vocab_size": 97, "num_key_value_heads": 2, "head_dim": 8}
    eyes = {**sizes, "image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=text, vision_config=eyes, mm_tokens_per_image=4)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("make", [neox, gemma3_with_eyes])
def test_names_that_transformers_changes_as_it_loads(make: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    model = make()
    model.save_pretrained(tmp_path)
    shapes = shapes_of("model", tmp_path)
    assert not set(shapes) <= set(model.state_dict())  # what this is about
    check_shapes("model", model, shapes)
    load_causal_model(DPOConfig(model_name_or_path=str(tmp_path)), str(tmp_path))


def test_fewer_layers_for_a_trial(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is left out is told, and what is trained can be saved and loaded again."""
    layers = {"num_hidden_layers": 1}
    config = DPOConfig(model_name_or_path=str(base), model_init_kwargs=layers)
    check_models(config)
    with caplog.at_level("WARNING", logger="posttrain"):
        model = load_causal_model(config, str(base))
    assert "left out: model.layers.1." in caplog.text
    model.save_pretrained(tmp_path / "saved")
    saved = load_causal_model(DPOConfig(model_name_or_path=str(tmp_path / "saved")), str(tmp_path / "saved"))
    assert len(saved.model.layers) == 1
    scored = load_reward_model(RewardConfig(model_name_or_path=str(base), model_init_kwargs=layers), str(base))
    assert len(scored.model.layers) == 1
    scored.save_pretrained(tmp_path / "scored")


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"layer_types": ["no_attention"] * 2}, "--model_init_kwargs do not fit its config.json: .*layer_types"),
        ({"layer_types": ["full_attention"]}, "with these --model_init_kwargs: list index out of range"),
        ({"hidden_size": "wide"}, "with these --model_init_kwargs: .*'hidden_size': .*expected int"),
    ],
)
def test_arguments_that_no_model_can_be_made_with(kwargs: dict[str, Any], said: str, base: Path) -> None:
    with pytest.raises(UserError, match=said):
        load_causal_model(DPOConfig(model_name_or_path=str(base), model_init_kwargs=kwargs), str(base))
    with pytest.raises(UserError, match="--model_name_or_path"):
        load_reward_model(RewardConfig(model_name_or_path=str(base), model_init_kwargs=kwargs), str(base))


def test_the_code_of_a_model_says_what_it_is(tmp_path: Path) -> None:
    model = write_base(tmp_path / "model")
    edit_config(model_type=None, auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"})(model)
    check_model("model_name_or_path", str(model))
