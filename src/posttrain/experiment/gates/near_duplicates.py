"""Rows that are nearly the same as an earlier one, without comparing every row with every other.

MinHash (Broder 1997, "On the resemblance and containment of documents"): of the n-grams' hashes, mixed in NUM_HASHES
ways, the smallest each. Two rows agree in one of those with a probability equal to their Jaccard similarity. Rows that
agree in a whole band of ROWS_A_BAND are candidates: at a similarity of 0.8 with a chance of 99.96%, at 0.5 with 47%.
The similarity of a candidate with the first row, and with the one before it, in its band is then computed exactly; so a
pair that is told is one, and of a large group in which all differ a little some may be missed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from posttrain.experiment.gates.ngrams import ngrams_of

NUM_BANDS, ROWS_A_BAND = 20, 5
NUM_HASHES = NUM_BANDS * ROWS_A_BAND
_ROWS_AT_ONCE = 4096
_SECONDS_BEFORE_BAR = 3.0


class NearDuplicate(NamedTuple):
    """A row that resembles an earlier one.

    Args:
        row: its number.
        earlier: the number of the other.
        similarity: Jaccard's, of the sets of n-grams: what both hold over what either holds.
    """

    row: int
    earlier: int
    similarity: float


def near_duplicates(rows: Sequence[np.ndarray], size: int, threshold: float, name: str) -> list[NearDuplicate]:
    """Find rows that resemble an earlier row, each with the most similar one that was met.

    Args:
        rows: (words,) uint64 each; those with fewer than `size` words are passed over.
        size: words of an n-gram.
        threshold: the smallest similarity, 0 to 1.
        name: what the progress bar shows.
    """
    long_ones = np.array([number for number, words in enumerate(rows) if len(words) >= size], np.int64)
    if not len(long_ones):
        return []
    sets = _ngram_sets([rows[number] for number in long_ones], size)
    signatures = _signatures(sets, name)
    best: dict[int, NearDuplicate] = {}
    for later, earlier in _candidates(signatures):
        similarity = _jaccard(sets[later], sets[earlier])
        row = int(long_ones[later])
        if similarity >= threshold and (row not in best or similarity > best[row].similarity):
            best[row] = NearDuplicate(row, int(long_ones[earlier]), similarity)
    return [best[row] for row in sorted(best)]


def _ngram_sets(rows: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
    """The different n-grams of each row, sorted."""
    ngrams = ngrams_of(rows, size)
    ends = np.searchsorted(ngrams.rows, np.arange(1, len(rows)))
    return [np.unique(part) for part in np.split(ngrams.hashes, ends)]


def _signatures(sets: Sequence[np.ndarray], name: str) -> np.ndarray:
    """(rows, NUM_HASHES) uint64: the smallest of the row's n-grams in each mixture."""
    draws = np.random.default_rng(0)  # the same mixtures in every run
    masks = draws.integers(0, 2**64, NUM_HASHES, np.uint64)
    factors = draws.integers(0, 2**63, NUM_HASHES, np.uint64) * np.uint64(2) + np.uint64(1)
    signatures = np.empty((len(sets), NUM_HASHES), np.uint64)
    with tqdm(total=len(sets), desc=name, unit="row", delay=_SECONDS_BEFORE_BAR) as progress:
        for first in range(0, len(sets), _ROWS_AT_ONCE):
            part = sets[first : first + _ROWS_AT_ONCE]
            hashes = np.concatenate(part)
            starts = np.cumsum([0, *(len(each) for each in part[:-1])])
            for column, (mask, factor) in enumerate(zip(masks, factors, strict=True)):
                mixed = (hashes ^ mask) * factor
                mixed ^= mixed >> np.uint64(32)  # the low bits of a product know nothing of the high ones
                signatures[first : first + len(part), column] = np.minimum.reduceat(mixed * factor, starts)
            progress.update(len(part))
    return signatures


def _candidates(signatures: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of rows, the later first, that agree in a band: each row with the first and the one before it there."""
    pairs: set[tuple[int, int]] = set()
    for band in np.split(signatures, NUM_BANDS, axis=1):
        order = np.lexsort((np.arange(len(band)), *band.T))
        is_same = (band[order[1:]] == band[order[:-1]]).all(axis=1)
        first = 0
        for place, same in enumerate(is_same.tolist(), start=1):
            if same:
                row = int(order[place])
                pairs.update(((row, int(order[first])), (row, int(order[place - 1]))))
            else:
                first = place
    return sorted(pairs)


def _jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """Of two sorted arrays without repetitions."""
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / (len(first) + len(second) - shared)
