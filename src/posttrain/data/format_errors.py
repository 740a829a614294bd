"""What is said of a row that has none of the formats of its kind."""

from collections.abc import Mapping
from typing import Any

from posttrain.data.json_text import shortened
from posttrain.data.problems import RowError, row_as_text

MESSAGES_EXAMPLE = '[{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]'
_COLUMNS = 20  # named of a row that has none of the formats
_KINDS = {
    "sft": "sft",
    "preference": "preference training (dpo, reward)",
    "prompts": "reinforcement learning (grpo, rloo)",
}
_PAGES = {"sft": "sft.md#data", "preference": "dpo.md#data", "prompts": "grpo.md#data"}
NEEDS = {
    "sft": (
        f'  {{"messages": {MESSAGES_EXAMPLE}}}\n'
        '  {"prompt": "2+2=", "completion": "4"}   (both may be lists of messages)\n'
        '  {"text": "2+2=4"}   (another column: --dataset_text_field)\n'
        '  {"conversations": [{"from": "user", "value": "2+2?"}, {"from": "assistant", "value": "4"}]}\n'
        '  {"input_ids": [17, 4, 9], "labels": [-100, 4, 9]}'
    ),
    "preference": (
        '  {"prompt": "2+2=", "chosen": "4", "rejected": "5"}   (all three may be lists of messages)\n'
        '  {"chosen": "2+2=4", "rejected": "2+2=5"}   (the prompt is their common beginning)'
    ),
    "prompts": (
        '  {"prompt": "2+2="}   (or a list of messages)\n'
        '  {"prompt": "2+2=", "solution": "4"}   (further columns reach the rewards)'
    ),
}


def wrong_type(column: str, wanted: str, found: Any) -> RowError:
    """The error of a column that holds something else than is wanted."""
    shown = row_as_text(found) if found is not None else "nothing"
    return RowError(f"wrong type in {column!r}", f"needs {wanted}; found {shown}")


def wrong_columns(kind: str, columns: Mapping[str, Any], hint: str) -> RowError:
    """The error of a row that has none of the formats of its kind."""
    names = [shortened(name, 40) for name in columns]
    more = f" and {len(names) - _COLUMNS:,} more" if len(names) > _COLUMNS else ""
    found = ", ".join(names[:_COLUMNS]) + more or "none with a value"
    advice = f"{hint}\n" if hint else ""
    example = row_as_text(dict(columns), 300)
    return RowError(
        f"wrong columns for {_KINDS[kind]}",
        f"found the columns {found}:\n  {example}\n{advice}needed is a row such as\n{NEEDS[kind]}",
        _PAGES[kind],
    )
