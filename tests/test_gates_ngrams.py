"""Words, n-grams, overlaps and near duplicates of rows, by hand and against a comparison of all pairs."""

from random import Random

import numpy as np
import pytest

from posttrain.experiment.gates import ngrams
from posttrain.experiment.gates.near_duplicates import NearDuplicate, near_duplicates
from posttrain.experiment.gates.ngrams import Overlap, Vocabulary, first_places, largest_overlaps, ngrams_of, words_of


def numbers(*texts: str) -> list[np.ndarray]:
    vocabulary = Vocabulary()
    return [vocabulary.numbers(text) for text in texts]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ann's  BOX,\nof 3 nuts!", ["ann", "s", "box", "of", "3", "nuts"]),
        ("3+4=7; 1,234.5 - $2", ["3", "+", "4", "=", "7", "1,234.5", "-", "$", "2"]),
        ("Übergröße ﬁne", ["übergrösse", "fine"]),  # as case folding and NFKC have it
        ("数学 is fun", ["数", "学", "is", "fun"]),
        ("…", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words_of(text) == expected


def test_a_word_has_the_same_number_everywhere() -> None:
    # The first 8 bytes of BLAKE2b with that length of digest, as `b2sum -l 64` prints them.
    assert Vocabulary()["ann"] == int("8d3adf6abf23f3a5", 16)


def test_ngrams_do_not_reach_from_row_to_row() -> None:
    first, second, short = numbers("a b c d", "b c d", "a b")
    found = ngrams_of([first, short, second], 3)
    assert found.rows.tolist() == [0, 0, 2]
    assert found.positions.tolist() == [0, 1, 0]
    assert found.hashes[1] == found.hashes[2] != found.hashes[0]
    assert len(ngrams_of([short], 3).hashes) == len(ngrams_of([], 3).hashes) == 0


def test_order_counts() -> None:
    first, second = numbers("a b c", "b a c")
    assert len(set(ngrams_of([first, second], 3).hashes.tolist())) == 2


def test_overlap_by_hand() -> None:
    rows = numbers("a b c d e f g h i j", "one two three", "a b")
    others = numbers("x a b c d y f g h i z", "a b c d e f", "three two one")
    # Of ten words, the first other one covers a-d and f-i: 8. The second one a-f: 6.
    assert largest_overlaps(rows, others, 3, "") == [Overlap(0.8, 0), Overlap(0.0, -1), Overlap(0.0, -1)]


def test_overlap_is_of_one_row_and_not_of_all_together() -> None:
    rows = numbers("a b c d e f")
    assert largest_overlaps(rows, numbers("a b c", "d e f"), 3, "") == [Overlap(0.5, 0)]
    assert largest_overlaps(rows, [], 3, "") == [Overlap(0.0, -1)]
    assert largest_overlaps([], rows, 3, "") == []


def test_overlap_counts_a_repeated_ngram_at_every_place() -> None:
    assert largest_overlaps(numbers("a b c x a b c"), numbers("a b c a b c"), 3, "") == [Overlap(6 / 7, 0)]


def test_what_very_many_rows_share_is_no_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngrams, "MAX_ROWS", 2)
    rows = numbers("please answer this question about nuts")
    twice = numbers(*["please answer this"] * 2, "question about nuts")
    assert largest_overlaps(rows, twice, 3, "") == [Overlap(0.5, 0)]
    thrice = numbers(*["please answer this"] * 3, "question about nuts")
    assert largest_overlaps(rows, thrice, 3, "") == [Overlap(0.5, 3)]


def test_overlap_is_that_of_a_comparison_of_all_pairs() -> None:
    draws = Random(0)
    texts = [[draws.choice("abc") for _ in range(draws.randint(0, 12))] for _ in range(60)]
    rows, others = texts[:20], texts[20:]

    def share(row: list[str], other: list[str]) -> float:
        theirs = {tuple(other[i : i + 3]) for i in range(len(other) - 2)}
        covered = {i + j for i in range(len(row) - 2) if tuple(row[i : i + 3]) in theirs for j in range(3)}
        return len(covered) / len(row) if row else 0.0

    found = largest_overlaps(numbers(*map(" ".join, rows)), numbers(*map(" ".join, others)), 3, "")
    assert [overlap.share for overlap in found] == [max(share(row, other) for other in others) for row in rows]
    for row, overlap in zip(rows, found, strict=True):
        assert overlap.row == -1 or share(row, others[overlap.row]) == overlap.share


def test_first_places() -> None:
    assert first_places([b"a", b"b", b"a", b"a", b"c", b"b"]) == [0, 1, 0, 0, 4, 1]


def test_near_duplicates_by_hand() -> None:
    # Of 10 words there are 9 pairs; another last word changes one: 8 of 10 different pairs are shared.
    rows = numbers("a b c d e f g h i j", "k l", "a b c d e f g h i z", "z", "m n o p q r s")
    assert near_duplicates(rows, 2, 0.8, "") == [NearDuplicate(2, 0, 0.8)]
    assert near_duplicates(rows, 2, 0.81, "") == []
    assert near_duplicates(numbers("a", ""), 2, 0.8, "") == []


def test_near_duplicates_are_those_of_a_comparison_of_all_pairs() -> None:
    draws = Random(1)
    originals = [[str(draws.randint(0, 200)) for _ in range(40)] for _ in range(150)]
    copies = []
    for original in originals:
        copy = list(original)
        for _ in range(draws.randint(0, 4)):
            copy[draws.randint(0, 39)] = "other"
        copies.append(copy)
    texts = originals + copies
    sets = [{tuple(text[i : i + 3]) for i in range(38)} for text in texts]
    similar = {
        later: max(len(sets[later] & sets[early]) / len(sets[later] | sets[early]) for early in range(later))
        for later in range(1, len(texts))
    }
    wanted = {later: value for later, value in similar.items() if value >= 0.7}
    found = {each.row: each.similarity for each in near_duplicates(numbers(*map(" ".join, texts)), 3, 0.7, "")}
    assert len(wanted) > 60
    assert found == pytest.approx(wanted)
