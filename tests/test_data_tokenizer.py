"""The tokenizer of a run, and the flags that change it."""

from pathlib import Path
from typing import Any

import pytest
from helpers_data import MARKED_TEMPLATE, PLAIN_TEMPLATE, make_tokenizer

from posttrain.config import GRPOConfig, SFTConfig
from posttrain.data.tokenizer import load_tokenizer
from posttrain.errors import UserError


def saved(folder: Path, **options: Any) -> str:
    make_tokenizer(**options).save_pretrained(folder)
    return str(folder)


def loaded(model: str, **flags: Any) -> Any:
    return load_tokenizer(SFTConfig(model_name_or_path=model, **flags))


def test_the_model_s_own(tmp_path: Path) -> None:
    tokenizer = loaded(saved(tmp_path))
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|end|>", "<pad>")
    assert tokenizer.chat_template == PLAIN_TEMPLATE


def test_eos_and_pad_from_the_flags(tmp_path: Path) -> None:
    tokenizer = loaded(saved(tmp_path), eos_token="<eos>", pad_token="<bos>")
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<eos>", "<bos>")
    with pytest.raises(UserError, match=r"--eos_token: '<\|im_end\|>' is not in the vocabulary.*<eos>"):
        loaded(str(tmp_path), eos_token="<|im_end|>")


def test_eos_must_not_be_pad(tmp_path: Path) -> None:
    model = saved(tmp_path, eos="<pad>")
    with pytest.raises(UserError, match=r"both '<pad>'.*--pad_token"):
        loaded(model)
    assert loaded(model, pad_token="<eos>").pad_token == "<eos>"
    assert loaded(model, eos_token="<eos>").eos_token == "<eos>"
    sampling = GRPOConfig(model_name_or_path=model, reward_funcs=["accuracy_reward"])
    assert load_tokenizer(sampling).eos_token == "<pad>"


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    """What saving a merged model leaves behind: transformers makes an empty tokenizer of it, whose EOS is nothing."""
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(UserError, match="has no tokenizer files; copy them"):
        loaded(str(tmp_path))


def test_a_tokenizer_without_eos(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="--eos_token"):
        loaded(str(tmp_path))
    assert loaded(str(tmp_path), eos_token="<eos>").eos_token == "<eos>"


def test_pad_may_be_missing(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert loaded(str(tmp_path)).pad_token is None


def test_a_template_from_a_file(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", template=None)
    file = tmp_path / "chat.jinja"
    file.write_text(MARKED_TEMPLATE)
    assert loaded(model, chat_template_path=str(file)).chat_template == MARKED_TEMPLATE
    with pytest.raises(UserError, match="does not exist"):
        loaded(model, chat_template_path=str(tmp_path / "none.jinja"))


def test_a_template_from_a_tokenizer_brings_its_tokens(tmp_path: Path) -> None:
    other = make_tokenizer(PLAIN_TEMPLATE.replace("<|end|>", "<|stop|>"))
    other.add_special_tokens({"eos_token": "<|stop|>"})
    other.save_pretrained(tmp_path / "other")
    model = saved(tmp_path / "model", template=None, eos="<eos>")
    tokenizer = loaded(model, chat_template_path=str(tmp_path / "other"))
    assert tokenizer.eos_token == "<|stop|>"
    assert tokenizer.encode("<|stop|>", add_special_tokens=False) == [len(tokenizer) - 1]
    assert len(tokenizer) == len(loaded(model)) + 1
    with pytest.raises(UserError, match="no chat template either"):
        loaded(model, chat_template_path=model)


def test_a_tokenizer_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match="--model_name_or_path: no tokenizer can be loaded from"):
        loaded(str(tmp_path))
