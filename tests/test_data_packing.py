"""Packing, on lengths alone."""

import random

import pytest

from posttrain.data.packing import Piece, best_fit_decreasing, split_documents, wrap

RANDOM = random.Random(1)
LENGTHS = {
    "mixed": [RANDOM.randint(1, 64) for _ in range(2000)],
    "short": [RANDOM.randint(1, 5) for _ in range(500)],
    "full": [64] * 10,
    "ones": [1] * 130,
    "none": [],
}


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_best_fit_places_every_piece_once_within_the_length(lengths: list[int]) -> None:
    rows = best_fit_decreasing(lengths, 64)
    assert sorted(piece for row in rows for piece in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[piece] for piece in row) <= 64 for row in rows)
    assert rows == best_fit_decreasing(lengths, 64)


def test_best_fit_by_hand() -> None:
    """Length 10. Longest first: 7 opens a row (room 3), 6 another (room 4), 4 fits the second exactly, 3 the first
    exactly, 2 opens a third (room 8), 1 joins it."""
    assert best_fit_decreasing([2, 7, 4, 1, 6, 3], 10) == [[0, 3], [1, 5], [2, 4]]


def test_best_fit_prefers_the_fullest_row() -> None:
    """9 and 7 leave rooms 1 and 3 of 10. The 1 fits both and goes where it leaves nothing."""
    assert best_fit_decreasing([7, 9, 1], 10) == [[0], [1, 2]]


def test_best_fit_wastes_little() -> None:
    lengths = LENGTHS["mixed"]
    assert len(best_fit_decreasing(lengths, 64)) <= 1.02 * sum(lengths) / 64


def test_split_covers_every_token_once() -> None:
    assert split_documents([3, 10, 4], 4) == [
        Piece(0, 0, 3),
        Piece(1, 0, 4),
        Piece(1, 4, 8),
        Piece(1, 8, 10),
        Piece(2, 0, 4),
    ]


def test_wrap_by_hand() -> None:
    assert wrap([3, 6, 2], 4) == [
        [Piece(0, 0, 3), Piece(1, 0, 1)],
        [Piece(1, 1, 5)],
        [Piece(1, 5, 6), Piece(2, 0, 2)],
    ]


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_wrap_covers_every_token_once_and_fills_rows(lengths: list[int]) -> None:
    rows = wrap(lengths, 50)
    tokens = [(piece.document, place) for row in rows for piece in row for place in range(piece.start, piece.stop)]
    assert tokens == [(document, place) for document, length in enumerate(lengths) for place in range(length)]
    assert all(sum(piece.stop - piece.start for piece in row) == 50 for row in rows[:-1])
