"""From the flags to rows of tokens, checked and cached: what the trainer asks for.

Every row is read, understood and checked before training. Mistakes are collected over the whole data set and reported
at once; what is dropped or cut is counted. The result depends on the data's bytes, the tokenizer and the flags, and is
kept under the hash of those.
"""

import functools
import itertools
import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.cache import cache_root
from posttrain.config import CommonConfig
from posttrain.data import store
from posttrain.data.build import build, check_rows
from posttrain.data.digests import remembered_in
from posttrain.data.origin import origin_of
from posttrain.data.problems import Problems
from posttrain.data.progress import is_first_process
from posttrain.data.readers import Row
from posttrain.data.sources import HeldOut, Mixture, Source, combined_digest, files_digest
from posttrain.data.splits import DEFAULT_SEED, Role, open_source
from posttrain.data.streamed_sources import FirstRows, Interleaved
from posttrain.data.tokenised import Options
from posttrain.errors import UserError
from posttrain.packages import version_of

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from posttrain.data.stream import Stream

logger = logging.getLogger(__name__)

_ROWS_CHECKED_EARLY = 1000
_TOLD_FIRST = ("rows_read", "rows", "tokens", "targets", "eos_targets")


@dataclass
class PreparedData:
    """What training needs of a split.

    Args:
        dataset: rows of tokens, mapped into memory; a Stream of the same rows where they are streamed. All have place,
            in words, where they stand in the data. SFT: input_ids (int32), loss_mask (int8, 1 = trained on, never for a
            first token), and when packed lengths (int32, the segments). Preferences: prompt_ids, chosen_ids,
            chosen_mask, rejected_ids, rejected_mask, row (index in the data set) and margin (may be null); for reward
            models without the masks. Prompts: prompt_ids, row, and as JSON prompt and columns (all others).
        counts: rows_read, rows, tokens, targets (tokens trained on), eos_targets, rows_truncated, tokens_truncated,
            rows_dropped_no_target, rows_dropped_prompt_too_long, rows_dropped_pair_too_long, rows_prompt_not_prefix
            (the completion starts within the prompt's last tokens), tokens_left_out (when packing: of pieces without a
            target); those that can happen to the kind. Of a Stream: so far.
        origin: what the rows were read from, as plain data; see `origin_of`.
    """

    dataset: "Dataset | Stream"
    counts: dict[str, int]
    origin: dict[str, Any] = field(default_factory=dict)


def prepare(config: CommonConfig, tokenizer: "PreTrainedTokenizerBase", kind: str, split: str) -> PreparedData | None:
    """Rows of a split, tokenised, checked and cached. Several processes may call it at once.

    Args:
        config: of the run.
        tokenizer: from load_tokenizer.
        kind: "sft", "preference", "reward" or "prompts".
        split: `config.dataset_train_split` or `config.dataset_test_split`.

    Returns:
        The rows, or None where there is nothing to test on.

    Raises:
        UserError: data that cannot be used, with its place and the way out.
    """
    role = _role(config, split)
    cache = cache_root(config.cache_dir)
    with remembered_in(cache / "digests"):
        source = open_source(config, role)
        digest = None if source is None else source.digest()
    if source is None:
        return None
    options = options_of(config, kind, role)
    if options.assistant_only and not tokenizer.is_fast:
        raise UserError("--assistant_only_loss needs a fast tokenizer, which knows where in the text a token stands")
    inputs = [kind, asdict(options), tokenizer_digest(tokenizer), digest, _code_digest()]
    if config.is_streamed and role == "train":
        return _streamed(config, tokenizer, kind, options, source, inputs)
    key = combined_digest(*inputs)[:32]
    processes = config.dataset_num_proc
    fill = partial(build, source=source, tokenizer=tokenizer, kind=kind, options=options, processes=processes)
    folder = store.cached_folder(cache / "tokenised", key, fill)
    about = store.read_about(folder)
    if is_first_process():
        logger.info("%s: %s", source.name, in_words(about["counts"]))
        for note in about["notes"]:
            logger.warning("%s: %s", source.name, note)
    return PreparedData(store.open_rows(folder / store.ROWS, key), about["counts"], origin_of(source))


def in_words(counts: Mapping[str, int]) -> str:
    """The counts of PreparedData that are not 0, the most telling ones first: "1,200 rows read, 1,198 rows, …"."""
    parts = []
    for name in [*(name for name in _TOLD_FIRST if name in counts), *sorted(counts.keys() - set(_TOLD_FIRST))]:
        words = "targets that are EOS" if name == "eos_targets" else name.replace("_", " ")
        if counts[name] == 1:
            words = re.sub(r"^(row|token|target)s", r"\1", words).replace("that are", "that is")
        if counts[name]:
            parts.append(f"{counts[name]:,} {words}")
    return ", ".join(parts)


def _streamed(
    config: Any, tokenizer: "PreTrainedTokenizerBase", kind: str, options: Options, source: Source, inputs: list[Any]
) -> PreparedData:
    from posttrain.data.stream import Stream  # which needs torch

    seed = options.shuffle_seed
    if kind == "prompts" and config.shuffle_dataset:
        seed = next(one for one in (config.data_seed, config.seed, DEFAULT_SEED) if one is not None)
    key = combined_digest("stream", seed, *inputs)[:32]
    stream = Stream(source, tokenizer, kind, options, seed, key, config.dataset_num_proc)
    return PreparedData(stream, stream.counts, origin_of(source))


def check(config: CommonConfig, kind: str) -> set[str]:
    """Look for mistakes at the beginning of the data, without a tokenizer: quick, to be done before heavy imports.

    Args:
        config: of the run.
        kind: "sft", "preference", "reward" or "prompts".

    Returns:
        Names of the columns that the first rows have.

    Raises:
        UserError: a file or split is missing or cannot be read, or one of the first rows cannot be used.
    """
    columns: set[str] = set()
    one_source = config.eval_strategy in (None, "no") or config.test_split_size is not None
    roles: tuple[Role, ...] = ("train",) if one_source else ("train", "test")
    for role in roles:
        source = open_source(config, role)
        for name, rows_of_one in _undivided(source) if source is not None else ():
            options, problems, number = options_of(config, kind, role), Problems(), 0
            for row in itertools.islice(rows_of_one, _ROWS_CHECKED_EARLY):
                check_rows([row], kind, options, problems)
                columns.update(row.columns)
                number += 1
            problems.raise_if_any(name, "the first row" if number == 1 else f"the first {number:,} rows")
    return columns


def _undivided(source: Source) -> Iterator[tuple[str, Iterator[Row]]]:
    """Name and rows of all that a source is made of: nothing has to be counted to read the first ones."""
    if isinstance(source, HeldOut | FirstRows):
        yield from _undivided(source.source)
    elif isinstance(source, Mixture | Interleaved):
        for part in source.parts:
            yield part.source.name, part.rows()
    else:
        yield source.name, source.rows()


def _role(config: CommonConfig, split: str) -> Role:
    train, test = config.dataset_train_split, config.dataset_test_split
    assert split in (train, test)
    if train == test and config.test_split_size is not None:
        raise UserError(
            f"dataset_train_split and dataset_test_split are both {train!r}, and test_split_size divides it; "
            "give --dataset_test_split another name"
        )
    return "train" if split == train else "test"


def options_of(config: Any, kind: str, role: Role) -> Options:
    """What a config asks to be made of the rows of a split.

    Args:
        config: of the run.
        kind: "sft", "preference", "reward" or "prompts".
        role: of the split.

    Raises:
        UserError: packing without a length to fill.
    """
    if kind == "prompts":
        return Options(
            max_length=config.max_prompt_tokens,
            keep_end=True,
            long_prompts=config.long_prompts,
            template_kwargs=json.dumps(config.chat_template_kwargs or {}, sort_keys=True),
        )
    if kind == "reward":
        return Options(max_length=config.max_length, keep_end=False)  # and nothing is cut
    options = {"max_length": config.max_length, "keep_end": config.truncation_mode == "keep_end"}
    if kind != "sft":
        return Options(**options)
    packing = config.packing if role == "train" or config.eval_packing is None else config.eval_packing
    if packing and config.max_length is None:
        raise UserError("--packing fills rows of max_length tokens; give --max_length a number")
    seed = DEFAULT_SEED if config.seed is None else config.seed
    return Options(
        **options,
        text_field=config.dataset_text_field,
        completion_only=config.completion_only_loss,
        assistant_only=config.assistant_only_loss,
        packing=config.packing_strategy if packing else None,
        shuffle_seed=seed if config.shuffle_dataset else None,
    )


def tokenizer_digest(tokenizer: Any) -> str:
    """Changes with whatever decides how a tokenizer turns texts and conversations into tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        inner: Any = sorted(tokenizer.get_vocab().items())
    else:
        backend.no_truncation()  # left over from earlier calls, they would change the hash
        backend.no_padding()
        inner = backend.to_str()
    templates = json.dumps(tokenizer.chat_template, sort_keys=True)
    return combined_digest(type(tokenizer).__name__, inner, templates, sorted(tokenizer.special_tokens_map.items()))


@functools.cache
def _code_digest() -> str:
    libraries = [version_of(name) for name in ("jinja2", "tokenizers", "transformers")]
    return combined_digest(libraries, files_digest(sorted(Path(__file__).parent.glob("*.py"))))
