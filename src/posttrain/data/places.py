"""Where rows stand in the data, in words: what a message names them by."""

import re
from collections.abc import Iterable

_NUMBERED = re.compile(r"(.* (?:line|row)) (\d+(?:, \d+)*)", re.DOTALL)


def together(places: Iterable[str], limit: int | None = None) -> str:
    """Several places in one text, the numbers of each file together: "a.jsonl line 7, 3; b.parquet row 1".

    Args:
        places: such as a Row has, or what this function made of some.
        limit: numbers that are written; of the others it is said how many there are. None writes all.
    """
    numbers: dict[str, dict[str, None]] = {}
    for text in places:
        for place in text.split("; "):
            match = _NUMBERED.fullmatch(place)
            of_file, own = (match[1], match[2].split(", ")) if match else (place, [""])
            numbers.setdefault(of_file, {}).update(dict.fromkeys(own))
    total, left, parts = sum(map(len, numbers.values())), limit, []
    for of_file, own in numbers.items():
        shown = list(own)[:left]
        left = None if left is None else left - len(shown)
        if shown:
            parts.append(f"{of_file} {', '.join(shown)}".rstrip())
    more = "" if limit is None or total <= limit else f" and {total - limit:,} more"
    return "; ".join(parts) + more
