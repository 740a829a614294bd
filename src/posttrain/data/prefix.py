"""How far two sequences agree."""

from collections.abc import Sequence


def common_prefix_length(first: Sequence, second: Sequence) -> int:
    """Number of leading elements that two sequences of one type (texts, lists of tokens or messages) have in common."""
    agreed, limit = 0, min(len(first), len(second))
    while agreed < limit:  # bisection by slices: equality of slices runs in C
        middle = (agreed + limit + 1) // 2
        if first[agreed:middle] == second[agreed:middle]:
            agreed = middle
        else:
            limit = middle - 1
    return agreed


def common_suffix_length(first: Sequence, second: Sequence) -> int:
    """Number of trailing elements that two sequences of one type have in common."""
    return common_prefix_length(first[::-1], second[::-1])
