"""Words as numbers, the n-grams of rows as hashes, and which row another one takes most of its words from.

Two rows share an n-gram where n words in a row are the same. Finding those takes a sort and a search, so it is linear
in the words but for n-grams that very many rows share: one of more than MAX_ROWS rows is a turn of phrase or a template
and tells nothing of where a row comes from, so it is passed over.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

MAX_ROWS = 1000
_SECONDS_BEFORE_BAR = 3.0
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, 2^64 over the golden ratio: multiplying by it loses nothing
# Numbers with their separators, signs of arithmetic, characters of scripts without blanks one by one, and words.
_WORD = re.compile(
    r"\d+(?:[.,]\d+)*|[-+*/=<>^%$€£]|[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
    r"|[^\W\d_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+"
)


def words_of(text: str) -> list[str]:
    """The words of a text: case, white space and punctuation make no difference, as in GPT-3's filter (arXiv
    2005.14165, appendix C). Unlike there the signs of arithmetic count as words: 3+4 and 3-4 are not the same question.
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


class Vocabulary(dict[str, int]):
    """A number of 64 bits for each word, the same on every machine."""

    def __missing__(self, word: str) -> int:
        number = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
        self[word] = number
        return number

    def numbers(self, text: str) -> np.ndarray:
        """The words of a text as (words,) uint64."""
        found = words_of(text)
        return np.fromiter((self[word] for word in found), np.uint64, len(found))


class Ngrams(NamedTuple):
    """The n-grams of several rows, in order.

    Args:
        hashes: (n-grams,) uint64.
        rows: (n-grams,) the row that each stands in.
        positions: (n-grams,) the word of its row that it begins with.
    """

    hashes: np.ndarray
    rows: np.ndarray
    positions: np.ndarray


def ngrams_of(rows: Sequence[np.ndarray], size: int) -> Ngrams:
    """All n-grams of rows; a row with fewer words has none.

    Args:
        rows: (words,) uint64 each.
        size: n, in words.
    """
    lengths = np.array([len(row) for row in rows], np.int64)
    words = np.concatenate([*rows, np.zeros(0, np.uint64)])
    index = np.repeat(np.arange(len(rows)), lengths)
    positions = np.arange(len(words)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    # Each word times a power of the factor that tells its place: a polynomial modulo 2^64.
    hashes = np.zeros(max(0, len(words) - size + 1), np.uint64)
    for offset in range(size):
        hashes = hashes * _FACTOR + words[offset : offset + len(hashes)]
    is_inside = positions[: len(hashes)] + size <= lengths[index[: len(hashes)]]
    return Ngrams(hashes[is_inside], index[: len(hashes)][is_inside], positions[: len(hashes)][is_inside])


class Overlap(NamedTuple):
    """What a row has in common with the row that it has most in common with.

    Args:
        share: of its words, those that stand in n-grams which that row holds too; 0 to 1.
        row: the other row; -1 where no row shares any.
    """

    share: float
    row: int


def largest_overlaps(rows: Sequence[np.ndarray], others: Sequence[np.ndarray], size: int, name: str) -> list[Overlap]:
    """For each row the one of the others that most of its words stand in.

    Args:
        rows: (words,) uint64 each.
        others: the same.
        size: words of an n-gram.
        name: what the progress bar shows.
    """
    own, theirs = ngrams_of(rows, size), ngrams_of(others, size)
    wanted = np.unique(own.hashes)
    holders = _rows_by_hash(theirs, wanted)
    starts = np.searchsorted(own.rows, np.arange(len(rows) + 1))
    found = []
    for number, words in enumerate(tqdm(rows, desc=name, unit="row", delay=_SECONDS_BEFORE_BAR)):
        part = slice(starts[number], starts[number + 1])
        lists = [holders.of(index) for index in np.searchsorted(wanted, own.hashes[part])]
        candidates = np.concatenate([*lists, np.zeros(0, np.int64)])
        positions = np.repeat(own.positions[part], [len(each) for each in lists])
        found.append(_largest(candidates, positions, size, len(words)))
    return found


class _Holders(NamedTuple):
    """The rows that hold an n-gram: of the one with index i, rows[starts[i]:starts[i + 1]]."""

    rows: np.ndarray
    starts: np.ndarray

    def of(self, index: int) -> np.ndarray:
        found = self.rows[self.starts[index] : self.starts[index + 1]]
        return found if len(found) <= MAX_ROWS else found[:0]


def _rows_by_hash(ngrams: Ngrams, wanted: np.ndarray) -> _Holders:
    """Which rows hold each of the wanted hashes, every row once.

    Args:
        ngrams: of the rows.
        wanted: sorted hashes, none twice.
    """
    if not len(wanted):
        return _Holders(np.zeros(0, np.int64), np.zeros(1, np.int64))
    index = np.minimum(np.searchsorted(wanted, ngrams.hashes), len(wanted) - 1)
    is_wanted = wanted[index] == ngrams.hashes
    index, rows = index[is_wanted], ngrams.rows[is_wanted]
    order = np.lexsort((rows, index))
    index, rows = index[order], rows[order]
    is_new = np.ones(len(index), bool)
    is_new[1:] = (index[1:] != index[:-1]) | (rows[1:] != rows[:-1])
    index, rows = index[is_new], rows[is_new]
    return _Holders(rows, np.searchsorted(index, np.arange(len(wanted) + 1)))


def _largest(candidates: np.ndarray, positions: np.ndarray, size: int, num_words: int) -> Overlap:
    """The candidate whose n-grams cover most of a row's words.

    Args:
        candidates: (matches,) a row that holds the n-gram at a position.
        positions: (matches,) ascending; each covers the `size` words from it.
        size: words of an n-gram.
        num_words: of the row.
    """
    if not len(candidates):
        return Overlap(0.0, -1)
    order = np.lexsort((positions, candidates))
    candidates, positions = candidates[order], positions[order]
    is_last = np.ones(len(candidates), bool)
    is_last[:-1] = candidates[1:] != candidates[:-1]
    # An n-gram adds the words up to where the same candidate's next one begins; the last one adds all of its own.
    added = np.full(len(positions), size)
    added[:-1] = np.where(is_last[:-1], size, np.minimum(np.diff(positions), size))
    ends = np.flatnonzero(is_last)
    covered = np.add.reduceat(added, np.concatenate([[0], ends[:-1] + 1]))
    best = int(covered.argmax())
    return Overlap(float(covered[best] / num_words), int(candidates[ends[best]]))


def first_places(keys: Iterable[bytes]) -> list[int]:
    """For each key the number of the first one that is the same: its own where there is no earlier one."""
    first: dict[bytes, int] = {}
    return [first.setdefault(key, number) for number, key in enumerate(keys)]
