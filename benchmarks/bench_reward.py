"""A reward that costs nothing, for both sides of the comparison."""


def share_of_thirds(completion_ids: list[list[int]], **columns: object) -> list[float]:
    """The share of tokens whose id is a multiple of three."""
    return [sum(token % 3 == 0 for token in ids) / len(ids) for ids in completion_ids]
