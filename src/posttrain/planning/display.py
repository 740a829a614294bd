"""A plan on a terminal of 100 columns: the verdict first, then what it is made of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posttrain.disk import in_words
from posttrain.inspection.display import WIDTH, Ink, item, table, wrapped
from posttrain.planning.records import errors
from posttrain.planning.report import Plan

_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_ROW = {"sft": "row", "reward": "pair", "dpo": "pair", "grpo": "completion", "rloo": "completion"}


def show(plan: Plan, ink: Ink) -> str:
    """The plan as text.

    Args:
        plan: of a run.
        ink: colours.
    """
    sections = (_verdict, _findings, _rows, _steps, _memory, _time, _disk, _settings, _assumptions)
    shown = ["\n".join(lines) for section in sections if (lines := list(section(plan, ink)))]
    return "\n\n".join(shown)


def duration(seconds: float) -> str:
    """In the two largest units that it has."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min" + (f" {rest} s" if minutes < 10 and rest else "")
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h" + (f" {minutes} min" if minutes else "")
    return f"{hours // 24} days" + (f" {hours % 24} h" if hours % 24 else "")


def short(number: float) -> str:
    """With three digits and a unit."""
    for size, unit in _UNITS:
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def _verdict(plan: Plan, ink: Ink) -> Iterator[str]:
    mark = ink.good("✓ fits") if plan.fits else ink.bad("✗ does not fit")
    memory = in_words(plan.peak)
    if plan.upper > 1.02 * plan.peak:
        memory += f" (up to {in_words(plan.upper)})"
    how = "by a probe" if plan.probe is not None else "by formula"
    yield (
        f"{ink.bold(f'{plan.method} {Path(plan.model).name}')}  {mark}: {memory} a {plan.holder} of "
        f"{in_words(plan.available)} · {duration(plan.time.total)} · {plan.steps.number:,} steps  {ink.dim(how)}"
    )


def _findings(plan: Plan, ink: Ink) -> Iterator[str]:
    marks = {"good": ink.good("✓"), "warn": ink.warn("!"), "bad": ink.bad("✗")}
    for finding in sorted(plan.findings, key=lambda one: one.level):
        yield from item(marks[finding.level], finding.text, indent=0)


def _section(title: str, rows: list[tuple[str, str]], ink: Ink) -> Iterator[str]:
    yield ink.bold(title)
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        lines = wrapped(text, WIDTH - width - 4)
        yield from (f"  {(name if not number else ''):<{width}}  {line}" for number, line in enumerate(lines))


def _rows(plan: Plan, ink: Ink) -> Iterator[str]:
    rows = plan.rows
    about = "" if rows.looked_at is None else f", by the first {rows.looked_at:,}"
    told: list[tuple[str, str]] = []
    if rows.kept is None:
        told.append(("rows", f"nobody knows how many{about}"))
    else:
        read = f"{rows.read:,} read, {rows.kept:,} kept" if rows.read != rows.kept else f"{rows.kept:,}"
        more = [f"{rows.dropped:,} dropped ({rows.dropped / max(1, rows.read or 1):.1%})"] * bool(rows.dropped)
        share = f"{rows.truncated / max(1, rows.read or 1):.1%}"
        more += [f"{rows.truncated:,} cut ({share}), which lose {rows.tokens_truncated:,} tokens"] * bool(
            rows.truncated
        )
        told.append(("rows", ", ".join([read, *more]) + about))
    if rows.tokens is not None:
        targets = f", {short(rows.targets)} of them trained on" if rows.targets else ""
        told.append(("tokens", f"{short(rows.tokens)}{targets}; the longest sequence has {rows.longest:,}"))
    if rows.packing is not None:
        told.append(("packing", f"{rows.packing:.1%} of the packed rows is filled"))
    elif rows.packable is not None:
        told.append(("packing", f"off; with --packing rows would be {rows.packable:.1%} full"))
    if rows.saved > 0.005:
        what = "prompts computed once, and no padding" if plan.method != "sft" else "no padding"
        told.append(("saved", f"{rows.saved:.0%} of the tokens of padded batches: {what}"))
    if rows.evaluation:
        told.append(("evaluation", f"{rows.evaluation:,} rows"))
    if rows.preparation is not None:
        once = rows.preparation
        how = f"in {once.processes} processes" if once.processes > 1 else "in one process"
        needs = f"{in_words(once.memory)} of memory and up to {in_words(once.disk)} of disk"
        told.append(("preparing", f"about {duration(once.seconds)} {how}, once; {needs}"))
    yield from _section("Rows", told, ink)


def _steps(plan: Plan, ink: Ink) -> Iterator[str]:
    steps, unit = plan.steps, _ROW[plan.method]
    parts = [f"{steps.rows_in_micro_batch} {unit}s"]
    parts += [f"{steps.micro_batches} micro-batches"] * (steps.micro_batches > 1)
    parts += [f"{steps.processes} processes"] * (steps.processes > 1)
    batch = " × ".join(parts) + (f" = {steps.rows_in_step} {unit}s" if len(parts) > 1 else "") + " a step"
    epochs = "" if steps.epochs is None else f", {steps.epochs:.2g} epochs of {steps.in_epoch:,}"
    warmup = f", the learning rate rising for {steps.warmup:,}" if steps.warmup else ""
    trained = plan.num_trained / max(plan.num_parameters, plan.num_trained)
    share = "all" if trained == 1 else f"{short(plan.num_trained)} ({trained:.2%})"
    told = [
        ("steps", f"{steps.number:,}{epochs}{warmup}"),
        ("batch", batch),
        (
            "micro-batch",
            f"{steps.mean.tokens:,.0f} tokens on average, {steps.largest.tokens:,.0f} in the largest",
        ),
        ("tokens", f"{short(steps.tokens_in_step)} a step, {short(plan.tokens)} in all"),
        ("parameters", f"{short(plan.num_parameters)} of {plan.kind}, {share} trained"),
    ]
    yield from _section("Steps", told, ink)


def _memory(plan: Plan, ink: Ink) -> Iterator[str]:
    memory, phase = plan.memory, plan.memory.fullest
    rows = [(part.name, in_words(part.bytes), part.how) for part in memory.always]
    rows += [(part.name, in_words(part.bytes), part.how) for part in memory.phases[phase] if part.bytes]
    if plan.probe is not None:
        off = plan.peak - memory.peak
        rows.append(
            (
                "as measured",
                ("+" if off >= 0 else "−") + in_words(abs(off)),
                "by the probe, which held "
                f"{in_words(plan.probe.peak)} where the formula says {in_words(plan.probe.peak_by_formula)}",
            )
        )
    rows.append(("peak", in_words(plan.peak), f"in {phase}"))
    yield ink.bold("Memory") + ink.dim(f"  of {in_words(plan.available)}")
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, size, how in rows:
        lines = wrapped(how, WIDTH - sum(widths) - 6)
        yield f"  {name:<{widths[0]}}  {size:>{widths[1]}}  {ink.dim(lines[0])}"
        yield from (" " * (sum(widths) + 6) + ink.dim(line) for line in lines[1:])
    if plan.longest_row is not None:
        yield from (
            f"  {line}"
            for line in wrapped(f"a micro-batch of about {plan.longest_row:,} tokens would fill it", WIDTH - 2)
        )


def _time(plan: Plan, ink: Ink) -> Iterator[str]:
    time, steps = plan.time, plan.steps
    step = f"{duration(time.step)}, {short(steps.tokens_in_step / max(time.step, 1e-9))} tokens a second"
    if plan.probe is not None:
        spread = plan.probe.seconds
        step += f"; the probe's steps took {min(spread):.2g} to {max(spread):.2g} s"
    told = [("a step", step), ("start", duration(time.start)), ("training", duration(time.training))]
    told += [("evaluation", duration(time.evaluation))] * bool(time.evaluation)
    told += [("saving", duration(time.saving)), ("in all", duration(time.total))]
    yield from _section("Time", told, ink)


def _disk(plan: Plan, ink: Ink) -> Iterator[str]:
    disk = plan.disk
    told = [("model", in_words(disk.model))]
    if disk.checkpoint:
        told.append(
            (
                "checkpoints",
                f"{disk.num_saves} of {in_words(disk.checkpoint)}, {disk.num_kept} at a time: "
                f"{in_words(disk.num_kept * disk.checkpoint)}",
            )
        )
    told.append(("cache", f"{in_words(disk.cache)} of prepared rows" if disk.cache else "nothing: rows are streamed"))
    told += [("completions", in_words(disk.completions))] * bool(disk.completions)
    told += [("DVC's cache", f"grows by {in_words(disk.dvc)}")] * bool(disk.dvc)
    told.append(("in all", f"{in_words(disk.total)} at most, of {in_words(disk.free)} free"))
    yield from _section("Disk", told, ink)


def _settings(plan: Plan, ink: Ink) -> Iterator[str]:
    told = [(name, text) for name, text in plan.decided.items()]
    flags = " · ".join(f"{name} {_value(value)}" for name, value in plan.settings.items())
    yield from _section("Settings", [*told, ("flags", flags or "all at their defaults")], ink)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _assumptions(plan: Plan, ink: Ink) -> Iterator[str]:
    if plan.assumptions:
        yield ink.bold("Assumed")
        for text in plan.assumptions:
            yield from item("·", text)


def show_outcomes(found: list[dict[str, Any]], ink: Ink) -> str:
    """A table of what was planned and what it took.

    Args:
        found: from `outcomes`.
        ink: colours.
    """
    if not found:
        return "No run that was planned has ended yet: `posttrain plan METHOD …`, and then the run."
    rows: list[tuple[str, ...]] = [
        ("run", "ended", "", "MiB planned", "took", "off", "s/step planned", "took", "off"),
    ]
    for one in found:
        predicted = one["predicted"]
        seconds, off = one.get("seconds_a_step"), one.get("seconds_a_step_error")
        rows.append(
            (
                f"{one['method']} {Path(str(one['model'])).name}",
                str(one["ended"])[:16].replace("T", " "),
                "probe" if predicted["probed"] else "formula",
                f"{predicted['peak_memory_mib']:,.0f}",
                f"{one['peak_memory_mib']:,.0f}",
                _off(one["peak_memory_error"]),
                f"{predicted['seconds_a_step']:.3f}",
                "–" if seconds is None else f"{seconds:.3f}",
                "–" if off is None else _off(off),
            )
        )
    lines = table(rows, indent=0)
    lines[0] = ink.bold(lines[0])
    sizes = errors(found)
    names = {"peak_memory": "memory", "seconds_a_step": "time"}
    for name, word in names.items():
        if f"{name}_median" in sizes:
            lines.append(
                f"{word}: off by {sizes[f'{name}_median']:.0%} in the median, {sizes[f'{name}_largest']:.0%} at most"
            )
    return "\n".join(lines)


def _off(error: float) -> str:
    return f"{error * 100:+.0f}%".replace("-", "−")
