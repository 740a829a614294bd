"""Pairs for a reward model: a shared beginning, and two whole sequences that continue it, scored at their last tokens.

Nothing is cut: an answer without its end is another answer. A pair with a side longer than `max_length` is left out,
counted and named.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from posttrain.data.encode import Encoding
from posttrain.data.formats import Example
from posttrain.data.preference import encoded_pairs, same_tokens
from posttrain.data.prefix import common_prefix_length
from posttrain.data.readers import Row
from posttrain.data.tokenised import Options, Tokenised


def tokenise_reward(tokenizer: Any, rows: Sequence[Row], options: Options, first_row: int) -> Tokenised:
    """Tokenise a batch of rows into the columns prompt_ids (int32; the common beginning of both sequences, without the
    last token of either), chosen_ids, rejected_ids (int32; the rest of each, never empty), row (int64, index in the
    data set), place, and margin (float32, may be null).

    Args:
        tokenizer: of the model.
        rows: at most a few thousand.
        options: what to make of them.
        first_row: index of the first one in the data set.

    Returns:
        The tokens; or, for rows that cannot be used, the reasons.
    """
    result = Tokenised()
    for index, (row, example, encodings) in enumerate(encoded_pairs(tokenizer, rows, 2, result)):
        _add(result, row.place, encodings, first_row + index, example, options)
    return result


def _add(
    result: Tokenised, place: str, encodings: Sequence[Encoding], index: int, example: Example, options: Options
) -> None:
    chosen, rejected = (encoding.ids for encoding in encodings)
    if chosen == rejected:
        result.problems.add(place, same_tokens())
        return
    if options.max_length is not None and max(len(chosen), len(rejected)) > options.max_length:
        result.drop("rows_dropped_pair_too_long", place)
        return
    shared = min(common_prefix_length(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
    result.append(
        prompt_ids=np.asarray(chosen[:shared], dtype=np.int32),
        chosen_ids=np.asarray(chosen[shared:], dtype=np.int32),
        rejected_ids=np.asarray(rejected[shared:], dtype=np.int32),
        row=index,
        place=place,
        margin=example.margin,
    )
