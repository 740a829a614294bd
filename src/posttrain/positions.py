"""How many positions a model knows, and rows that are longer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from posttrain.config import CommonConfig
from posttrain.config.paths import adapter_base
from posttrain.data.progress import is_first_process
from posttrain.data.stream import Stream
from posttrain.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

_PAGE = "troubleshooting.md#data"


class Positions(NamedTuple):
    """What a model's config says.

    Args:
        number: of positions; None where that is not known, or any number.
        is_rotary: later ones can be computed, though the model has not seen them in pretraining.
    """

    number: int | None
    is_rotary: bool


def text_config_of(config: CommonConfig) -> Any:
    """Read the config of `model_name_or_path`, or of an adapter's base; no weights.

    Args:
        config: of the run.

    Returns:
        What it says of the language model; None for an adapter of the hub, or a model that cannot be loaded, which
        loading it tells.
    """
    from transformers import AutoConfig

    base = adapter_base(str(config.model_name_or_path))
    name, revision = (config.model_name_or_path, config.model_revision) if base is None else (base, "main")
    try:
        about = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=config.trust_remote_code)
        return about.get_text_config()
    except (OSError, ValueError, KeyError):
        return None


def positions_of(config: CommonConfig) -> Positions:
    """What the config of `model_name_or_path`, or of an adapter's base, says of positions.

    Args:
        config: of the run.
    """
    about = text_config_of(config)
    if about is None:
        return Positions(None, True)
    is_rotary = any(getattr(about, name, None) for name in ("rope_parameters", "rope_theta"))
    return Positions(getattr(about, "max_position_embeddings", None), is_rotary)


def check_positions(config: CommonConfig, datasets: Sequence[Dataset]) -> None:
    """Compare the longest row with the positions that the model knows. (Of prompts, which completions follow, the check
    is `rollout.room`'s.)

    Args:
        config: of the run.
        datasets: tokenised rows, to train and perhaps to evaluate on.

    Raises:
        UserError: the model has a table of positions, and a row is longer; or may be, where rows are streamed.
    """
    if config.data_kind == "prompts":
        return
    count, is_rotary = positions_of(config)
    if count is None:
        return
    for dataset, which in zip(datasets, ("", " of the evaluation data"), strict=False):
        if isinstance(dataset, Stream):
            limit = dataset.options.max_length
            if not is_rotary and (limit is None or limit > count):
                raise UserError(
                    f"{config.model_name_or_path} has {count:,} positions, and how long the longest streamed row is "
                    f"cannot be known beforehand; give --max_length {count}",
                    _PAGE,
                )
            continue
        longest = _longest(dataset)
        if longest <= count:
            continue
        text = f"the longest row{which} has {longest:,} tokens, and {config.model_name_or_path} {count:,} positions"
        if not is_rotary:
            raise UserError(f"{text}; give --max_length {count}", _PAGE)
        if is_first_process():
            logger.warning("%s: what stands behind them is badly read; --max_length %d cuts it off.", text, count)


def _longest(dataset: Dataset) -> int:
    """Tokens of the longest sequence that attends to itself: a row, a document of a packed row, or the prompt with the
    longer side of a pair."""
    return max((_longest_of(batch) for batch in dataset.data.to_batches()), default=0)


def _longest_of(batch: Any) -> int:
    import pyarrow.compute as pc

    def lengths(name: str) -> Any:
        return pc.list_value_length(batch.column(name))

    names = batch.schema.names
    if "lengths" in names:
        found = pc.list_flatten(batch.column("lengths"))
    elif "input_ids" in names:
        found = lengths("input_ids")
    else:
        found = pc.add(lengths("prompt_ids"), pc.max_element_wise(lengths("chosen_ids"), lengths("rejected_ids")))
    return int(pc.max(found).as_py() or 0)
