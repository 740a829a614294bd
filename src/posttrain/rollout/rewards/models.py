"""Models as rewards: a sequence classifier with one score, or a classifier whose labels make a number."""

import functools
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from posttrain.batch import NO_PARENT, PackedBatch, pack
from posttrain.config.rewards import RewardSourceFlags
from posttrain.data.encode import encode_texts, texts_of
from posttrain.data.formats import Example, template_options
from posttrain.data.prefix import common_prefix_length
from posttrain.data.problems import RowError
from posttrain.errors import UserError
from posttrain.hub import explain
from posttrain.reward_model import load_sequence_classifier
from posttrain.reward_scoring import RewardScorer
from posttrain.rollout.rewards.batch import RewardBatch, Scores, text_of
from posttrain.rollout.rewards.labels import label_values
from posttrain.rollout.rewards.sources import Source
from posttrain.wording import first_line

logger = logging.getLogger(__name__)

FLAG = "reward_model_name_or_path"
# Tokens of one forward pass, shared prompts counted once for each completion.
TOKENS_AT_ONCE = 16_384


class ModelReward:
    """A model that gives each completion a score; it works when the scores are asked for.

    Args:
        source: the model.
        config: its revision and data type.
        device: that it works on.

    Attributes:
        num_truncated: completions that were too long for it so far.

    Raises:
        UserError: it cannot be loaded, or is no such model.
    """

    def __init__(self, source: Source, config: RewardSourceFlags, device: torch.device | str):
        self.name, self.device = source.name, torch.device(device)
        self.num_truncated = 0
        options: dict[str, Any] = {
            "revision": config.reward_model_revision,
            "trust_remote_code": bool(getattr(config, "trust_remote_code", False)),
        }
        self._tokenizer = _load_tokenizer(source.target, options)
        dtype = config.reward_model_dtype
        options["dtype"] = dtype if dtype == "auto" else getattr(torch, dtype)
        if source.kind == "model":
            self._model = load_sequence_classifier(source.target, **options)
            self._values: torch.Tensor | None = None
        else:
            self._model = _load_classifier(source.target, options)
            self._values = _values_of(self._model, source.target)
        self._model.eval().requires_grad_(False).to(self.device)
        # An encoder reads prompt and completion as a pair of texts; its score is of no one token.
        is_encoder = not hasattr(self._model, "score")
        self._scorer = None if is_encoder or source.kind == "classifier" else RewardScorer(self._model)
        self._limit = _longest_input(self._model, self._tokenizer)

    def submit(self, batch: RewardBatch) -> Callable[[], Scores]:
        """Returns what computes the scores."""
        return functools.partial(self._score, batch)

    def close(self) -> None:
        """Let the weights go."""
        del self._model, self._scorer

    @torch.no_grad()
    def _score(self, batch: RewardBatch) -> Scores:
        before = self.num_truncated
        scores = self._by_labels(batch) if self._scorer is None else self._by_last_token(batch)
        if self.num_truncated and not before:
            logger.warning(
                "reward %s: texts of more than %d tokens are too long for its model and are cut", self.name, self._limit
            )
        return Scores(scores)

    def _by_last_token(self, batch: RewardBatch) -> list[float | None]:
        """Scores at the last token of prompt + completion, tokenised as for the training of reward models."""
        sequences = [self._cut(ids) for ids in _token_ids(self._tokenizer, batch, self.name)]
        assert self._scorer is not None
        scores: list[float | None] = []
        for group in _chunks(sequences):
            packed = pack_sequences(group, [batch.prompts[len(scores) + i] for i in range(len(group))])
            scores += self._scorer(self._model, packed.to(self.device)).tolist()
        return scores

    def _cut(self, ids: list[int]) -> list[int]:
        self.num_truncated += len(ids) > self._limit
        return ids[-self._limit :]

    def _by_labels(self, batch: RewardBatch) -> list[float | None]:
        """What the labels are worth under their probabilities; with one label, the logit itself."""
        completions = [text_of(completion) for completion in batch.completions]
        pairs = [completions] if self._values is not None else [[text_of(one) for one in batch.prompts], completions]
        encode = functools.partial(self._tokenizer, *pairs, verbose=False)
        whole = encode(truncation=False)["input_ids"]
        self.num_truncated += sum(len(ids) > self._limit for ids in whole)
        encoded = encode(truncation=True, max_length=self._limit)
        scores: list[float | None] = []
        for group in _chunks(encoded["input_ids"], alone=self._tokenizer.pad_token_id is None):
            rows = slice(len(scores), len(scores) + len(group))
            part = {name: values[rows] for name, values in encoded.items()}
            if len(group) > 1:
                part = self._tokenizer.pad(part, padding_side="right")
            inputs = {name: torch.tensor(values, device=self.device) for name, values in part.items()}
            scores += self._worth(self._model(**inputs).logits.float()).tolist()
        return scores

    def _worth(self, logits: torch.Tensor) -> torch.Tensor:
        if self._values is None or logits.shape[1] == 1:
            return logits[:, 0]
        is_multiple = self._model.config.problem_type == "multi_label_classification"
        probabilities = logits.sigmoid() if is_multiple else logits.softmax(-1)
        return probabilities @ self._values.to(logits.device)


def pack_sequences(sequences: Sequence[Sequence[int]], prompts: Sequence[Any]) -> PackedBatch:
    """Sequences as segments; what those that follow one another on the same prompt begin with stands there once.

    Args:
        sequences: C lists of token ids, none empty.
        prompts: C prompts.
    """
    ids: list[np.ndarray] = []
    parents: list[int] = []
    rows = itertools.groupby(zip(prompts, sequences, strict=True), key=lambda row: row[0])
    groups = [[sequence for _, sequence in group] for _, group in rows]
    for group in groups:
        shared = min(common_prefix_length(group[0], other) for other in group[1:]) if len(group) > 1 else 0
        shared = min(shared, *(len(sequence) - 1 for sequence in group))
        parent = NO_PARENT
        if shared:
            parent = len(ids)
            ids.append(np.asarray(group[0][:shared]))
            parents.append(NO_PARENT)
        for sequence in group:
            ids.append(np.asarray(sequence[shared:]))
            parents.append(parent)
    return pack(ids, [np.zeros(len(one), dtype=np.int8) for one in ids], parents, num_groups=len(groups))


def _token_ids(tokenizer: Any, batch: RewardBatch, name: str) -> list[list[int]]:
    texts = []
    for row, (prompt, completion) in enumerate(zip(batch.prompts, batch.completions, strict=True)):
        columns = {key: values[row] for key, values in batch.columns.items()}
        try:
            tools, options = template_options(columns)
            texts += texts_of(tokenizer, Example(prompt, (completion,), tools, options))[-1:]
        except RowError as error:
            raise UserError(f"reward {name} at {batch.places[row]}: {error}") from error
    return [encoding.ids for encoding in encode_texts(tokenizer, texts)]


def _chunks(sequences: Sequence[Sequence[int]], alone: bool = False) -> list[list[Sequence[int]]]:
    """The sequences in their order, as many at a time as one pass takes."""
    chunks: list[list[Sequence[int]]] = []
    longest = 0
    for sequence in sequences:
        longest = max(longest, len(sequence))
        if alone or not chunks or (len(chunks[-1]) + 1) * longest > TOKENS_AT_ONCE:
            chunks.append([])
            longest = len(sequence)
        chunks[-1].append(sequence)
    return chunks


def _load_tokenizer(path: str, options: dict[str, Any]) -> Any:
    try:
        return AutoTokenizer.from_pretrained(path, **options)
    except Exception as error:  # whatever the many tokenizer classes raise
        raise explain(error, f"{FLAG} {path}") or UserError(
            f"{FLAG}: {path} has no tokenizer that can be loaded: {first_line(error)}"
        ) from error


def _load_classifier(path: str, options: dict[str, Any]) -> PreTrainedModel:
    options = options | {"use_safetensors": True}  # a pickle can run any code when it is read
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(path, output_loading_info=True, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise explain(error, f"{FLAG} {path}") or UserError(
            f"{FLAG}: {path} cannot be loaded: {first_line(error)}"
        ) from error
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise UserError(f"{FLAG}: {path} is no trained classifier: it has no weights for {missing}")
    return model


def _values_of(model: PreTrainedModel, path: str) -> torch.Tensor:
    if model.config.num_labels == 1:
        return torch.ones(1)
    return torch.tensor(label_values(model.config.id2label, f"{FLAG}: {path}"))


def _longest_input(model: PreTrainedModel, tokenizer: Any) -> int:
    """Tokens that a model can read; encoders count positions of their own, which their tokenizers know of."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1_000_000
    return min(int(positions), int(tokenizer.model_max_length))
