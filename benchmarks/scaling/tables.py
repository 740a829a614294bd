"""The results as markdown."""

from __future__ import annotations

from typing import Any

MEBIBYTE = 2**20


def all_tables(results: dict[str, Any]) -> dict[str, str]:
    """A table for each part that has been measured, by its title."""
    found: dict[str, str] = {}
    for part, content in results["parts"].items():
        measured = content["measured"]
        if part == "sampling":
            found["sampling"] = _sampling(measured)
        elif part == "prefix":
            found["prefix: speed"] = _prefix(measured, "speed")
            found["prefix: memory"] = _prefix(measured, "memory")
        else:
            found[part] = _steps(part, measured)
    return found


def _steps(part: str, measured: list[dict[str, Any]]) -> str:
    lines = [
        f"| {part} | tokens a step | seconds a step (smallest to largest) | tokens a second "
        "| … a second of the processor | peak, MiB | planned, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in measured:
        median, low, high = one["seconds"]
        off = f"{(one['planned_peak'] / one['peak'] - 1) * 100:+.0f}%".replace("-", "−")
        cells = [
            one["value"],
            f"{one['tokens']:,.0f}",
            f"{median:.3f} ({low:.3f} to {high:.3f})",
            f"{one['tokens'] / median:,.0f}",
            f"{one['tokens'] / one['processor_seconds'][0]:,.0f}",
            f"{one['peak'] / MEBIBYTE:,.0f}",
            f"{one['planned_peak'] / MEBIBYTE:,.0f} ({off})",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _sampling(measured: list[dict[str, Any]]) -> str:
    lines = [
        "| varied | prompts × tokens × completions | tokens a second, all in all "
        "| decoding alone, a second of the processor | seconds of the prompts |",
        "|---|---|---|---|---|",
    ]
    for one in measured:
        cells = [
            one["series"],
            f"{one['prompts']} × {one['prompt']} × {one['completions']}",
            f"{one['tokens_a_second']:,.0f}",
            f"{one['of_processor']:,.0f}",
            f"{one['prompt_seconds']:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _prefix(measured: list[dict[str, Any]], what: str) -> str:
    """A row a prompt length, a column a group size: measured gain, predicted gain, and the one by the other."""
    groups = sorted({one["group"] for one in measured})
    cells = {(one["prompt"], one["group"]): one for one in measured}
    lines = [f"| P \\ G | {' | '.join(map(str, groups))} |", f"|---{'|---' * len(groups)}|"]
    for prompt in sorted({one["prompt"] for one in measured}):
        row = [str(prompt)]
        for group in groups:
            one = cells[prompt, group]
            predicted, actual = one[f"{what}_predicted"], one[what]
            if actual is None:
                row.append(f"– ({predicted:.2f})")
            else:
                row.append(f"{actual:.2f} ({predicted:.2f}, {actual / predicted:.2f})")
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)
