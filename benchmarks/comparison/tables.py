"""docs/speed.md, made of what has been measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from benchmarks.comparison import ratios
from benchmarks.comparison.cells import METHODS, NAMES, SIZES, Cell
from benchmarks.comparison.floors import Work
from benchmarks.comparison.ratios import AIM_OF_MEMORY, AIM_OF_START, AIMS, Verdict
from benchmarks.step_profile import KINDS

MEBIBYTE = 2**20
PICTURE = "pictures/speed.svg"  # beside the page
_BEGINS, _ENDS = "<!-- speed begins -->", "<!-- speed ends -->"
_ROW = ("method", "tuning", "precision", "data", "size")
_PIECES = ("products", "memory", "sampling")


def page(results: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        results: as results.json holds them.
    """
    records = in_order(results["cells"].values())
    rates, start = results["rates"], results["import"]
    parts = [
        _HEAD,
        _where(results["about"], records),
        f"![time of a step and peak memory of each cell beside TRL's]({PICTURE})",
        "## A step",
        _OF_STEPS,
        time_table(records, rates),
        f"The floor in its parts, in seconds: products at {rates['float32'] / 1e9:,.0f} (float32) and "
        f"{rates['bf16'] / 1e9:,.0f} (bf16) billion operations a second, memory at {rates['copy'] / 1e9:.1f} GB a "
        "second: the fastest that torch did of either on this machine.",
        floor_table(records, rates),
        _OF_PROFILES,
        profile_table(records),
        "## Memory and start",
        f"{_OF_MEMORY} The import of transformers' `Trainer` alone, without garbage collection, takes "
        f"{start['seconds']:.1f} s ({start['processor']:.1f} s of the processor): no start can be shorter.",
        memory_table(records),
        "## Against the aims",
        *aims(records, rates, start["processor"]),
    ]
    if "card" in results:
        parts += ["## On a card of 24 GB", *card(results["card"])]
    return "\n\n".join(parts) + "\n"


_HEAD = """# Speed and memory beside TRL

`make bench DATA=folder` (`python -m benchmarks.comparison`) measures, and writes this page from
[results.json](../benchmarks/comparison/results.json). [The benchmarks' page](../benchmarks/README.md#against-trl)
tells how, and what holds the figures where they are.

Both sides have the same rows, flags, versions and cores, are alive at once, and take their steps in turn. Weights are
float32; bf16 is that of products (`--bf16`). A step is 8 rows, 2 packed rows of 1,024 tokens, 8 pairs, or 32
completions of up to 128 tokens to 4 prompts. LoRA has rank 16, and no dropout, which the two sides would draw
differently."""
_OF_STEPS = """Seconds are medians, the ratio is the median over pairs of steps, and in brackets that of seconds of the
processor. Tokens a second count a shared prompt once for each of its completions. The floor is the least time that the
operations and bytes of such a step take; in brackets, the share of posttrain's step that it explains."""
_OF_PROFILES = """Where the time of posttrain's step goes: one step more under torch's profiler, which makes small
operations longer. Rest is Python, transformers' loop, and the engine of autograd."""
_OF_MEMORY = """Peak memory of the process, and what `posttrain plan` says of the run; seconds from the command to the
first step, with empty caches, each side alone, and the ratio of their seconds of the processor."""


def _where(about: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> str:
    """Machine, versions, days, and whether all was measured with one state of the code."""
    versions = ", ".join(f"{name} {about[name]}" for name in ("trl", "torch", "transformers", "peft"))
    days = sorted({record["when"][:10] for record in records})
    number = len({record["code"] for record in records})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    code = "" if number == 1 else f", with {number} states of posttrain's code"
    return f"Measured on {about['cores']} core{'s' * (about['cores'] > 1)} of {about['cpu']}, {when}{code}; {versions}."


def main_rows(results: Mapping[str, Any]) -> str:
    """Of the smaller model, all of it trained, and where that was measured: what the README shows."""
    records = in_order(results["cells"].values())
    lines = [
        "| | precision | seconds a step, TRL | here | | peak memory, TRL | here | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        cell, found = Cell(**record["cell"]), ratios.ratios(record)
        if (cell.size, cell.tuning) != (SIZES[0], "full"):
            continue
        sides = [record[side] for side in ("peer", "own")]
        seconds = [f"{statistics.median(side['seconds']):.3f}" for side in sides]
        memory = [f"{side['peak'] / MEBIBYTE:,.0f} MiB" for side in sides]
        name = f"{NAMES[cell.method]}, {NAMES[cell.data]}"
        cells = [name, cell.precision, *seconds, f"{1 / found['time']:.2f}×", *memory, f"{found['memory']:.2f}×"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", _where(results["about"], records)])


def with_rows(text: str, rows: str) -> str:
    """A page with the main rows between its marks `<!-- speed begins -->` and `<!-- speed ends -->`."""
    before, rest = text.split(_BEGINS)
    after = rest.split(_ENDS)[1]
    return f"{before}{_BEGINS}\n\n{rows}\n\n{_ENDS}{after}"


def in_order(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """By size, method, data, tuning and precision."""

    def place(record: Mapping[str, Any]) -> tuple[Any, ...]:
        cell = record["cell"]
        return SIZES.index(cell["size"]), METHODS.index(cell["method"]), cell["data"], cell["tuning"], cell["precision"]

    return sorted(
        records,
        key=lambda record: (*place(record)[:3], record["cell"]["tuning"] != "full", place(record)[4] != "float32"),
    )


def floor_of(record: Mapping[str, Any], rates: Mapping[str, float]) -> dict[str, float]:
    """Seconds, by the parts of a floor."""
    return Work(**record["work"]).seconds(rates[record["cell"]["precision"]], rates["copy"])


def time_table(records: Iterable[Mapping[str, Any]], rates: Mapping[str, float]) -> str:
    """Seconds a step."""
    head = ["TRL, s", "here, s", "times as fast", "TRL, tokens/s", "here", "floor, s", "losses apart"]
    return _table(head, ((record, list(_of_time(record, rates))) for record in records))


def _of_time(record: Mapping[str, Any], rates: Mapping[str, float]) -> Iterator[str]:
    own, peer = record["own"], record["peer"]
    seconds = {side: statistics.median(record[side]["seconds"]) for side in ("peer", "own")}
    yield from (f"{value:.3f}" for value in seconds.values())
    of_processor = statistics.median(b / a for a, b in zip(own["processor"], peer["processor"], strict=True))
    yield f"{1 / ratios.ratios(record)['time']:.2f}× ({of_processor:.2f}×)"
    for side in ("peer", "own"):
        yield f"{sum(record[side]['tokens']) / sum(record[side]['seconds']):,.0f}"
    floor = sum(floor_of(record, rates).values())
    yield f"{floor:.3f} ({floor / seconds['own']:.0%})"
    apart = ratios.losses_apart(record)
    own_rows = "each packs in its own order" if record["cell"]["method"] == "packed" else "each its own samples"
    yield own_rows if apart is None else f"{apart:.0e}"


def floor_table(records: Iterable[Mapping[str, Any]], rates: Mapping[str, float]) -> str:
    """The parts of the floors, and what a step holds."""
    head = ["tokens", "targets", "billion operations", "MB", *_PIECES]

    def cells(record: Mapping[str, Any]) -> list[str]:
        work, load = Work(**record["work"]), record["load"]
        operations = work.operations + work.sampling_operations
        found = [f"{load['tokens']:,.0f}", f"{load['targets']:,.0f}", f"{operations / 1e9:,.1f}"]
        found.append(f"{(work.bytes + work.sampling_bytes) / 1e6:,.0f}")
        return found + [f"{floor_of(record, rates)[name]:.3f}" for name in _PIECES]

    return _table(head, ((record, cells(record)) for record in records))


def profile_table(records: Iterable[Mapping[str, Any]]) -> str:
    """Shares of a step of posttrain."""
    head = [*KINDS, "rest"]

    def cells(record: Mapping[str, Any]) -> list[str]:
        found = record["profile"]
        return [f"{found[kind] / sum(found.values()):.0%}" for kind in head]

    return _table(head, ((record, cells(record)) for record in records))


def memory_table(records: Iterable[Mapping[str, Any]]) -> str:
    """Peak memory and start."""
    head = ["TRL, MiB", "here", "ratio", "planned", "start: TRL, s", "here", "ratio"]

    def cells(record: Mapping[str, Any]) -> list[str]:
        own, peer, found = record["own"], record["peer"], ratios.ratios(record)
        off = f"{(record['planned_peak'] / own['peak'] - 1) * 100:+.0f}%".replace("-", "−")
        planned = f"{record['planned_peak'] / MEBIBYTE:,.0f} ({off})"
        memory = [f"{side['peak'] / MEBIBYTE:,.0f}" for side in (peer, own)]
        start = [f"{side['start']:.1f}" for side in (peer, own)]
        return [*memory, f"{found['memory']:.2f}", planned, *start, f"{found['start']:.2f}"]

    return _table(head, ((record, cells(record)) for record in records))


def _table(head: list[str], rows: Iterable[tuple[Mapping[str, Any], list[str]]]) -> str:
    lines = [f"| {' | '.join([*_ROW, *head])} |", "|---" * (len(_ROW) + len(head)) + "|"]
    for record, cells in rows:
        words = [NAMES.get(record["cell"][name], record["cell"][name]) for name in _ROW]
        lines.append(f"| {' | '.join([*words, *cells])} |")
    return "\n".join(lines)


def aims(records: Iterable[Mapping[str, Any]], rates: Mapping[str, float], imports: float) -> list[str]:
    """What is short of its aim, and whether the floor leaves room for it.

    Args:
        records: in the order of the table.
        rates: of the machine.
        imports: seconds of the processor that an import of transformers' Trainer takes.
    """
    lines = ["| cell | aim | measured | |", "|---|---|---|---|"]
    reached = total = 0
    for record in records:
        cell, found = Cell(**record["cell"]), ratios.ratios(record)
        seconds, aim = statistics.median(record["peer"]["seconds"]), AIMS[cell.method]
        floor = sum(floor_of(record, rates).values())
        start = AIM_OF_START * record["peer"]["start_processor"]
        wanted = [
            (f"{aim:g}× as fast", 1 / found["time"], 1 / found["time"] >= aim, _room(seconds / aim, floor)),
            (
                f"{AIM_OF_MEMORY}× the memory",
                found["memory"],
                found["memory"] <= AIM_OF_MEMORY,
                _room_in_memory(record),
            ),
            (f"{AIM_OF_START}× the start", found["start"], found["start"] <= AIM_OF_START, _room(start, imports)),
        ]
        total += len(wanted)
        reached += sum(is_met for _, _, is_met, _ in wanted)
        lines += [
            f"| {cell.words} | {what} | {now:.2f}× | {room} |" for what, now, is_met, room in wanted if not is_met
        ]
    text = f"{reached} of {total} aims are reached. Those that are not:"
    return [text, "\n".join(lines)] if reached < total else [f"All {total} are reached."]


def _room(wanted: float, floor: float) -> str:
    """What an aim comes to beside a floor, both in seconds."""
    return f"that is {wanted:.3f} s; the floor is {floor:.3f} s" + ": out of reach" * (floor > wanted)


def _room_in_memory(record: Mapping[str, Any]) -> str:
    """What the aim comes to beside what a process holds before its first step."""
    wanted, before = AIM_OF_MEMORY * record["peer"]["peak"], record["own"]["before"]
    held = f"{before / MEBIBYTE:,.0f} are held before the first step"
    return f"that is {wanted / MEBIBYTE:,.0f} MiB; {held}" + ": out of reach" * (before > wanted)


def card(found: Mapping[str, Any]) -> list[str]:
    """What a card of 24 GB has room for, planned."""
    lines = ["| method | weights | longest row, tokens | largest model |", "|---|---|---|---|"]
    for one in found["rows"]:
        row = "–" if one["longest"] is None else f"{one['longest']:,}"
        lines.append(f"| {NAMES[one['method']]} | {one['weights']} | {row} | {one['largest'] or '–'} |")
    return [found["about"], "\n".join(lines)]


def verdict_table(found: Iterable[Verdict]) -> str:
    """Ratios beside their baselines."""
    lines = ["| cell | own by TRL's | baseline | now | |", "|---|---|---|---|---|"]
    for one in found:
        mark = f"worse by more than {one.tolerance:.0%}" if one.is_worse else ""
        lines.append(f"| {one.cell} | {one.what} | {one.baseline:.3f} | {one.now:.3f} | {mark} |")
    return "\n".join(lines)
