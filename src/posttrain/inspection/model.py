"""What is known of a model without its weights: how large it is, how far it can look, whether it has been tuned."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.config import CommonConfig
from posttrain.environment import memory

_TUNED = re.compile(
    r"instruct|chat|assistant|tuned|aligned|rlhf|zephyr|hermes|vicuna|alpaca|tulu|(^|[-_.])(it|sft|dpo|ppo|grpo|rloo)([-_.]|$)",
    re.IGNORECASE,
)
_FULL, _REFERENCE = 16, 4  # bytes a parameter: weight, gradient and Adam's two states; a weight, all in float32
_ROOM = 0.7  # of the memory; the rest is for activations
_LARGE = 1_000_000_000


@dataclass(frozen=True)
class Model:
    """A model.

    Args:
        name: folder or hub id.
        base: why it seems to be a base model; empty where it has been tuned.
        num_parameters: None where it is not known.
        positions: how many tokens it has positions for; None where it is not known, or any number.
        memory: bytes to train in.
        where: whose memory that is.
    """

    name: str
    base: str
    num_parameters: int | None
    positions: int | None
    memory: int
    where: str

    def training_bytes(self, method: str) -> int | None:
        """What all parameters need when they are trained in float32, a reference beside them where there is one."""
        with_reference = method in ("dpo", "rloo")
        return None if self.num_parameters is None else self.num_parameters * (_FULL + _REFERENCE * with_reference)

    def fits(self, method: str) -> bool:
        """Whether all of it can be trained here; True where that is not known."""
        needed = self.training_bytes(method)
        return needed is None or not self.memory or needed <= _ROOM * self.memory

    def fits_with_adapters(self, bytes_per_parameter: int) -> bool:
        """Whether its frozen weights leave room for adapters and activations."""
        needed = (self.num_parameters or 0) * bytes_per_parameter
        return not self.memory or needed <= _ROOM * self.memory

    @property
    def is_large(self) -> bool:
        return self.num_parameters is not None and self.num_parameters > _LARGE


def describe_model(config: CommonConfig, tokenizer: Any) -> Model:
    """Look at a model's config and name; no weight is read.

    Args:
        config: of a method.
        tokenizer: of the model.
    """
    import torch

    from posttrain.adapters import without_weights

    name = str(config.model_name_or_path)
    num_parameters = positions = None
    model = without_weights(config)
    if model is not None:  # else an adapter's folder, a model of another kind: training it will tell what is wrong
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
    room, where = memory(torch)
    return Model(name, _why_base(name, tokenizer), num_parameters, positions, room, where)


def _why_base(name: str, tokenizer: Any) -> str:
    folder = Path(name).expanduser()
    if tokenizer.chat_template is None:
        return "its tokenizer has no chat template"
    if (folder / "trainer_state.json").is_file() or (folder / "adapter_config.json").is_file():
        return ""
    return "" if _TUNED.search(folder.name) else "nothing in its name says that it has been tuned"
