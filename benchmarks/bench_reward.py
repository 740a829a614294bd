"""Rewards of the benchmarks; both sides of the comparison import them, so they need nothing."""

import re


def share_of_thirds(completion_ids: list[list[int]], **columns: object) -> list[float]:
    """The share of tokens whose id is a multiple of three: costs nothing, and differs between completions."""
    return [sum(token % 3 == 0 for token in ids) / len(ids) for ids in completion_ids]


def says_a_number(completions: list[list[dict]], **columns: object) -> list[float]:
    """1 for a completion that ends in a line `#### number`, be it the right one or not."""
    return [float(bool(re.search(r"#### -?[\d,.]+\s*$", messages[0]["content"]))) for messages in completions]
