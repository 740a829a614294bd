"""Preference rows: a shared beginning, and two sequences that continue it.

Both completions start where the tokens of the prompt part from those of prompt + completion, at the earlier place of
the two, so that both log-probs are of the same text given the same tokens. `max_length` cuts each of the two sequences.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from posttrain.data.encode import Encoding, Text, encode_texts, texts_of
from posttrain.data.formats import Example, parse_preference
from posttrain.data.prefix import common_prefix_length
from posttrain.data.problems import RowError
from posttrain.data.readers import Row
from posttrain.data.tokenised import Options, Tokenised


def tokenise_preference(tokenizer: Any, rows: Sequence[Row], options: Options, first_row: int) -> Tokenised:
    """Tokenise a batch of rows into the columns prompt_ids (int32; what both sequences share, before any target),
    chosen_ids, chosen_mask, rejected_ids, rejected_mask (int32 and int8: the rest of each, 1 = trained on), row (int64,
    index in the data set), place, and margin (float32, may be null).

    Args:
        tokenizer: of the model.
        rows: at most a few thousand.
        options: what to make of them.
        first_row: index of the first one in the data set.

    Returns:
        The tokens; or, for rows that cannot be used, the reasons.
    """
    result = Tokenised()
    for index, (row, example, encodings) in enumerate(encoded_pairs(tokenizer, rows, 3, result)):
        _add(result, row.place, encodings, first_row + index, example, options)
    return result


def encoded_pairs(
    tokenizer: Any, rows: Sequence[Row], num_texts: int, result: Tokenised
) -> list[tuple[Row, Example, list[Encoding]]]:
    """Understand and tokenise preference pairs.

    Args:
        tokenizer: of the model.
        rows: at most a few thousand.
        num_texts: 3 for the prompt, prompt + chosen and prompt + rejected; 2 for the latter two.
        result: is told of rows that cannot be used.

    Returns:
        Each row with what it says; nothing where one cannot be used.
    """
    examples: list[Example] = []
    texts: list[Text] = []
    for row in rows:
        try:
            example = parse_preference(row.columns)
            texts += texts_of(tokenizer, example)[-num_texts:]
            examples.append(example)
        except RowError as error:
            result.problems.add(row.place, error)
    if result.problems:
        return []
    encodings = encode_texts(tokenizer, texts)
    of_rows = [encodings[start : start + num_texts] for start in range(0, len(encodings), num_texts)]
    return list(zip(rows, examples, of_rows, strict=True))


def same_tokens() -> RowError:
    """The error of a pair that is none to the model."""
    return RowError(
        "chosen = rejected in tokens",
        "they differ as text, and the chat template (or the tokenizer) makes the same of both; take the pair out",
    )


def _add(
    result: Tokenised, place: str, encodings: Sequence[Encoding], index: int, example: Example, options: Options
) -> None:
    prompt, *wholes = (encoding.ids for encoding in encodings)
    if wholes[0] == wholes[1]:
        result.problems.add(place, same_tokens())
        return
    prompt_length = min(common_prefix_length(prompt, whole) for whole in wholes)
    result.counts["rows_prompt_not_prefix"] += example.is_prompt_given and prompt_length < len(prompt)
    if options.max_length is not None and prompt_length >= options.max_length and not options.keep_end:
        result.drop("rows_dropped_prompt_too_long", place)
        return
    cuts = [options.kept(len(whole)) for whole in wholes]
    kept = [whole[cut] for whole, cut in zip(wholes, cuts, strict=True)]
    starts = [max(1, prompt_length - cut.start) for cut in cuts]  # from 1: nothing predicts the first token
    if any(start >= len(ids) for start, ids in zip(starts, kept, strict=True)):
        result.drop("rows_dropped_no_target", place)
        return
    shared = min(max(0, prompt_length - cut.start) for cut in cuts)
    if cuts[0].start != cuts[1].start:  # cut at the front, by different amounts: what is left need not agree
        shared = min(shared, common_prefix_length(*kept))
    values: dict[str, Any] = {"prompt_ids": np.asarray(kept[0][:shared], dtype=np.int32)}
    for name, ids, start in zip(("chosen", "rejected"), kept, starts, strict=True):
        values[f"{name}_ids"] = np.asarray(ids[shared:], dtype=np.int32)
        values[f"{name}_mask"] = (np.arange(shared, len(ids)) >= start).astype(np.int8)
        result.last_trained[ids[-1]] += 1
    result.append(**values, row=index, place=place, margin=example.margin)
    result.count_truncated(sum(map(len, wholes)) - sum(map(len, kept)))
