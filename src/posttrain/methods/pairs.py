"""Pairs as segments: the prompt, and the chosen and the rejected completion as its children."""

from __future__ import annotations

import numpy as np

from posttrain.batch import NO_PARENT
from posttrain.methods import Row


def segments_of_pairs(rows: list[Row]) -> tuple[list[np.ndarray], list[np.ndarray], list[int]]:
    """Token ids, target masks and parents of the segments, as `pack` takes them.

    Args:
        rows: with prompt_ids (may be empty), chosen_ids and rejected_ids; and where there are targets, chosen_mask and
            rejected_mask.
    """
    ids: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    parents: list[int] = []
    for row in rows:
        parent = NO_PARENT
        if len(row["prompt_ids"]):
            parent = len(ids)
            ids.append(np.asarray(row["prompt_ids"]))
            masks.append(np.zeros(len(row["prompt_ids"]), dtype=np.int8))
            parents.append(NO_PARENT)
        for side in ("chosen", "rejected"):
            ids.append(np.asarray(row[f"{side}_ids"]))
            masks.append(np.asarray(row.get(f"{side}_mask", np.zeros(len(ids[-1]), dtype=np.int8))))
            parents.append(parent)
    return ids, masks, parents
