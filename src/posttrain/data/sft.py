"""SFT rows: one sequence each, and a mask of the tokens that are trained on.

The completion starts where the tokens of the prompt and those of prompt + completion part. Masks (completion,
assistant, the row's own) are combined with AND.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from posttrain.data.chat import Span
from posttrain.data.encode import Encoding, Ids, Mask, Text, encode_texts, texts_of
from posttrain.data.formats import Example, TokenExample, parse_sft
from posttrain.data.prefix import common_prefix_length
from posttrain.data.problems import RowError
from posttrain.data.readers import Row
from posttrain.data.tokenised import Options, Tokenised


def tokenise_sft(tokenizer: Any, rows: Sequence[Row], options: Options, first_row: int) -> Tokenised:
    """Tokenise a batch of rows into the columns input_ids (int32), loss_mask (int8, 1 = trained on) and place.

    Args:
        tokenizer: of the model.
        rows: at most a few thousand.
        options: what to make of them.
        first_row: index of the first one in the data set; of no account here.

    Returns:
        The tokens; or, for rows that cannot be used, the reasons.
    """
    result = Tokenised()
    documents: dict[int, tuple[Ids, Mask]] = {}
    texts: dict[int, list[Text]] = {}
    for index, row in enumerate(rows):
        try:
            example = parse_sft(row.columns, options.text_field)
            _check_masks_apply(example, options)
            if isinstance(example, TokenExample):
                documents[index] = _given_tokens(tokenizer, example, options)
            else:
                texts[index] = texts_of(tokenizer, example, options.assistant_only)
        except RowError as error:
            result.problems.add(row.place, error)
    if result.problems:
        return result
    encodings = iter(encode_texts(tokenizer, [text for of_row in texts.values() for text in of_row]))
    for index, of_row in texts.items():
        documents[index] = _document(of_row, [next(encodings) for _ in of_row], options, result)
    for index, row in enumerate(rows):
        _add(result, row.place, *documents[index], options)
    return result


def _check_masks_apply(example: Example | TokenExample, options: Options) -> None:
    if isinstance(example, TokenExample):
        has_assistant = example.trained_mask is not None
        is_divided = has_assistant or example.completion_mask is not None
    else:
        has_assistant = example.is_conversation
        is_divided = example.prompt is not None
    if options.completion_only and not is_divided:
        raise RowError(
            "no completion for completion_only_loss",
            "the row is not divided into prompt and completion; leave --completion_only_loss out, or use "
            "--assistant_only_loss where rows are messages",
        )
    if options.assistant_only and not has_assistant:
        raise RowError(
            "no messages for assistant_only_loss", "the row is not a conversation; leave --assistant_only_loss out"
        )


def _given_tokens(tokenizer: Any, example: TokenExample, options: Options) -> tuple[Ids, Mask]:
    if max(example.input_ids) >= len(tokenizer):
        raise RowError(
            "token outside the vocabulary",
            f"input_ids has {max(example.input_ids)}, the tokenizer's last is {len(tokenizer) - 1}; "
            "tokenise with the tokenizer of --model_name_or_path",
        )
    mask = np.ones(len(example.input_ids), dtype=np.int8)
    for given in (example.trained_mask, example.completion_mask if options.completion_only is not False else None):
        if given is not None:
            mask &= np.asarray(given) != 0
    return np.asarray(example.input_ids, dtype=np.int32), mask


def _document(
    texts: Sequence[Text], encodings: Sequence[Encoding], options: Options, result: Tokenised
) -> tuple[Ids, Mask]:
    whole = encodings[-1]
    mask = np.ones(len(whole.ids), dtype=np.int8)
    if len(encodings) > 1 and options.completion_only is not False:
        prompt_length = common_prefix_length(encodings[0].ids, whole.ids)
        mask[:prompt_length] = 0
        result.counts["rows_prompt_not_prefix"] += prompt_length < len(encodings[0].ids)
    spans = texts[-1].spans
    if spans is not None:
        assert whole.offsets is not None
        mask &= mask_of_spans(np.asarray(whole.offsets, dtype=np.int64).reshape(-1, 2), spans)
    return np.asarray(whole.ids, dtype=np.int32), mask


def mask_of_spans(offsets: npt.NDArray[np.int64], spans: Sequence[Span]) -> Mask:
    """The tokens that have a character in one of the spans.

    A token astride the beginning of a span counts: it is part of what the model has to write.

    Args:
        offsets: (length, 2), first character of each token and the one after its last.
        spans: of characters.

    Returns:
        (length,) int8.
    """
    first, end = offsets[:, 0], np.maximum(offsets[:, 1], offsets[:, 0] + 1)
    mask = np.zeros(len(offsets), dtype=bool)
    for start, stop in spans:
        mask |= (first < stop) & (end > start)
    return mask.astype(np.int8)


def _add(result: Tokenised, place: str, ids: Ids, mask: Mask, options: Options) -> None:
    if not mask[1:].any():  # nothing predicts the first token
        result.drop("rows_dropped_no_target", place)
        return
    kept = options.kept(len(ids))
    cut_ids, cut_mask = ids[kept], mask[kept].copy()
    cut_mask[0] = 0
    if not cut_mask.any():
        result.drop("rows_dropped_prompt_too_long", place)
        return
    result.count_truncated(len(ids) - len(cut_ids))
    result.append(input_ids=cut_ids, loss_mask=cut_mask, place=place)
    result.last_trained[int(cut_ids[np.flatnonzero(cut_mask)[-1]])] += 1
