"""The tokenizer of a run: the model's own, with the flags' EOS, PAD and chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.config import CommonConfig
from posttrain.data.template import read_from
from posttrain.errors import UserError
from posttrain.hub import explain
from posttrain.wording import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Any of these is in every folder that save_pretrained of a tokenizer writes, or that older tools have made.
_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
)
_TEMPLATE_SUFFIXES = (".jinja", ".jinja2", ".j2")


def load_tokenizer(config: CommonConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of `model_name_or_path` and apply `chat_template_path`, `eos_token` and `pad_token`.

    A template that comes with a tokenizer brings the special tokens it writes (the model's embeddings have to grow when
    they are new) and its EOS. A missing PAD token stays missing: batches hold no padding.

    Args:
        config: of the run.

    Raises:
        UserError: there is no tokenizer or template, a token is not in the vocabulary, EOS is missing, or is PAD where
            texts are trained on.
    """
    tokenizer = read_tokenizer(config)
    problem = end_problem(tokenizer, config)
    if problem is not None:
        raise UserError(problem, "troubleshooting.md#model-loading")
    return tokenizer


def read_tokenizer(config: CommonConfig) -> PreTrainedTokenizerBase:
    """As `load_tokenizer`, of which EOS may be PAD."""
    assert config.model_name_or_path is not None
    tokenizer = _load(config.model_name_or_path, config, "--model_name_or_path")
    if config.chat_template_path is not None:
        _apply_template(tokenizer, config.chat_template_path, config)
    for name in ("eos_token", "pad_token"):
        token = getattr(config, name)
        if token is None:
            continue
        if token not in tokenizer.get_vocab():
            raise UserError(
                f"--{name}: {token!r} is not in the vocabulary of {config.model_name_or_path}; "
                f"its special tokens are {_special_tokens(tokenizer)}"
            )
        setattr(tokenizer, name, token)
    if tokenizer.eos_token is None:
        raise UserError(
            f"{config.model_name_or_path}: the tokenizer has no EOS token; name one with --eos_token; "
            f"its special tokens are {_special_tokens(tokenizer)}",
            "troubleshooting.md#model-loading",
        )
    return tokenizer


def end_problem(tokenizer: Any, config: CommonConfig) -> str | None:
    """What is wrong with an EOS that is PAD too, where texts are trained on; None where nothing is.

    Args:
        tokenizer: of the run.
        config: of the run.
    """
    # Where completions are sampled, none is padded, and their ends come from the model: base models such as
    # Qwen2.5-0.5B, which have one token for both, are trained as they are.
    if tokenizer.eos_token_id != tokenizer.pad_token_id or config.data_kind == "prompts":
        return None
    return (
        f"eos_token and pad_token of {config.model_name_or_path} are both {tokenizer.eos_token!r}: whoever ignores "
        "padding would ignore the end of the text too, and the model would never learn to stop; give another "
        f"--pad_token, or --eos_token; its special tokens are {_special_tokens(tokenizer)}"
    )


def _load(name: str, config: CommonConfig, flag: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer
    from transformers.utils import logging

    folder = Path(name).expanduser()
    if folder.is_dir() and not any((folder / file).is_file() for file in _FILES):
        raise UserError(
            f"{flag}: {name} has no tokenizer files; copy them from the folder of the model that it was made of, or "
            "save that model's tokenizer there too",
            "troubleshooting.md#model-loading",
        )
    # The revision is the model's: a template's tokenizer has its own history.
    revision = config.model_revision if name == config.model_name_or_path else "main"
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # what it tries in vain is told in one line
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=config.trust_remote_code)
    except Exception as error:  # whatever the many tokenizer classes raise, it is the named folder that is at fault
        way_out = "" if Path(name).is_dir() else f" (There is no folder {name} here, so it was looked up on the hub.)"
        raise explain(error, f"{flag} {name}") or UserError(
            f"{flag}: no tokenizer can be loaded from {name}: {first_line(error)}{way_out}",
            "troubleshooting.md#model-loading",
        ) from error
    finally:
        logging.set_verbosity(before)
    if not set(tokenizer.get_vocab()) - {token.content for token in tokenizer.added_tokens_decoder.values()}:
        raise UserError(
            f"{flag}: no tokenizer can be loaded from {name}: it knows special tokens alone; copy the file of its "
            "vocabulary there, such as tokenizer.json",
            "troubleshooting.md#model-loading",
        )
    _check_special_tokens(tokenizer, folder, flag)
    return tokenizer


def _check_special_tokens(tokenizer: PreTrainedTokenizerBase, folder: Path, flag: str) -> None:
    """Raise for an EOS or PAD that transformers has made up: a token of the settings that the vocabulary lacks becomes
    a new one, which no text has ever ended with."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return
    about = json.loads(file.read_text(encoding="utf-8"))
    known = {token["content"] for token in about.get("added_tokens") or ()}
    words = about["model"].get("vocab") or {}  # of a unigram model: pairs of a token and its score
    known.update(words if isinstance(words, dict) else (word[0] for word in words))
    for token in about.get("added_tokens") or ():
        number = tokenizer.convert_tokens_to_ids(token["content"])
        if number != token["id"]:  # its id follows all others, and the library gives it the next one
            raise UserError(
                f"{flag}: the token {token['content']!r} of {folder} has the number {token['id']} in its "
                f"tokenizer.json, and could only be {number}; copy the file again",
                "troubleshooting.md#model-loading",
            )
    elsewhere = _added_elsewhere(folder)
    known.update(token for token, number in elsewhere.items() if tokenizer.convert_tokens_to_ids(token) == number)
    for name in ("eos_token", "pad_token"):
        token = getattr(tokenizer, name)
        if token is not None and token not in known:
            raise UserError(
                f"{flag}: the {name} of {folder} is {str(token)!r}, which is not in the vocabulary of its "
                "tokenizer.json; correct its tokenizer_config.json, or copy both files again",
                "troubleshooting.md#model-loading",
            )


def _added_elsewhere(folder: Path) -> dict[str, int]:
    """Tokens that stand beside tokenizer.json, in files that transformers has read too, and the numbers they are to
    have."""
    found: dict[str, int] = {}
    settings, file = folder / "tokenizer_config.json", folder / "added_tokens.json"
    if settings.is_file():
        numbered = json.loads(settings.read_text(encoding="utf-8")).get("added_tokens_decoder") or {}
        found |= {token["content"]: int(number) for number, token in numbered.items()}
    if file.is_file():
        found |= json.loads(file.read_text(encoding="utf-8"))
    return found


def _special_tokens(tokenizer: Any) -> str:
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return ", ".join(special[:8]) + (", …" if len(special) > 8 else "") if special else "none"


def _apply_template(tokenizer: Any, path: str, config: CommonConfig) -> None:
    file = Path(path).expanduser()
    if file.is_file():
        try:
            tokenizer.chat_template = file.read_text(encoding="utf-8-sig")
            read_from(tokenizer.chat_template, path)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--chat_template_path: {path} cannot be read: {error}") from error
        return
    if path.endswith(_TEMPLATE_SUFFIXES):
        raise UserError(f"--chat_template_path: {path} does not exist")
    other = _load(path, config, "--chat_template_path")
    if other.chat_template is None:
        raise UserError(f"--chat_template_path: the tokenizer of {path} has no chat template either")
    tokenizer.chat_template = other.chat_template
    template = tokenizer.get_chat_template()
    new = [token for token in other.added_tokens_decoder.values() if token.content in template]
    tokenizer.add_tokens([token for token in new if token.content not in tokenizer.get_vocab()])
    if other.eos_token in tokenizer.get_vocab():
        tokenizer.eos_token = other.eos_token
