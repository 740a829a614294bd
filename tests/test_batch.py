"""The packed batch, by hand."""

from __future__ import annotations

import numpy as np
import torch

from posttrain.batch import NO_PARENT, Segments, pack


def test_a_prompt_with_two_completions_and_a_document() -> None:
    """Row: prompt 10 11 12 | chosen 20 21 | rejected 30 | document 40 41 42.

    The chosen completion's targets 20 and 21 are predicted at the prompt's last token (2) and at 20 (3); the rejected
    one's 30 at the prompt's last token again; the document's 41 and 42 at 40 (6) and 41 (7).
    """
    ids = [np.array(x) for x in ([10, 11, 12], [20, 21], [30], [40, 41, 42])]
    masks = [np.array(x) for x in ([0, 0, 0], [1, 1], [1], [0, 1, 1])]
    batch = pack(ids, masks, [NO_PARENT, 0, 0, NO_PARENT], num_groups=2)
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 3, 0, 1, 2]
    assert batch.target_positions.tolist() == [2, 3, 2, 6, 7]
    assert batch.target_ids.tolist() == [20, 21, 30, 41, 42]
    assert batch.sequence_ids.tolist() == [0, 0, 1, 2, 2]
    assert batch.end_positions.tolist() == [4, 5, 8]
    assert batch.num_tokens == 5 + 4 + 3
    assert batch.weights() == {"targets": 5, "sequences": 3, "groups": 2}
    sequences = [ids.tolist() for ids in batch.sequences()]
    assert sequences == [[10, 11, 12, 20, 21], [10, 11, 12, 30], [40, 41, 42]]
    assert batch.segments.key_lengths == (3, 5, 4, 3)
    cu_queries, cu_keys, key_index = batch.segments.gather_indices(torch.device("cpu"))
    assert cu_queries.tolist() == [0, 3, 5, 6, 9]
    assert cu_keys.tolist() == [0, 3, 8, 12, 15]
    assert key_index.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7, 8]

    _, cu_keys, key_index = Segments((3, 2), (NO_PARENT, NO_PARENT)).gather_indices(torch.device("cpu"))
    assert cu_keys.tolist() == [0, 3, 5] and not len(key_index)  # the tokens as they stand

    rows = batch.padded()
    assert rows.input_ids.tolist() == [[10, 11, 12, 20, 21], [10, 11, 12, 30, 0], [40, 41, 42, 0, 0]]
    assert rows.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]
    assert rows.target_index.tolist() == [2, 3, 7, 10, 11]


def test_mask_is_aligned_at_the_bottom_right() -> None:
    batch = pack([np.arange(2), np.arange(2)], [np.zeros(2), np.ones(2)], [NO_PARENT, 0], num_groups=1)
    cpu = torch.device("cpu")
    assert batch.segments.mask(2, 4, None, cpu).tolist() == [[True, True, True, False], [True, True, True, True]]
    assert batch.segments.mask(2, 4, 2, cpu).tolist() == [[False, True, True, False], [False, False, True, True]]
    added = batch.segments.added_mask(2, 4, 2, cpu, torch.float32)
    assert added.tolist() == [[-torch.inf, 0, 0, -torch.inf], [-torch.inf, -torch.inf, 0, 0]]
    assert batch.segments.added_mask(2, 4, 2, cpu, torch.float32) is added  # layers share it


def test_an_empty_completion_and_a_move() -> None:
    batch = pack(
        [np.arange(3), np.array([], dtype=np.int64), np.array([7])],
        [np.zeros(3), np.zeros(0), np.ones(1)],
        [NO_PARENT, 0, 0],
        num_groups=1,
        reference_logprobs=np.array([-1.5], dtype=np.float32),
    )
    assert batch.end_positions.tolist() == [2, 3]
    assert batch.sequence_ids.tolist() == [1]
    moved = batch.to("meta")
    assert moved.input_ids.is_meta and moved.reference_logprobs is not None and moved.reference_logprobs.is_meta
    assert moved.segments == batch.segments
