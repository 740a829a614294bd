"""The tables of docs/equivalence.md."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from equivalence_cases import Case, Cut
from equivalence_compare import Apart

from posttrain.checkout import state_of
from posttrain.machine import cpu_model, num_cores

_PACKAGES = ("torch", "transformers", "accelerate", "peft", "deepspeed")


@dataclass(frozen=True)
class Difference:
    """How far a run is from the one that takes the whole step at once."""

    case: Case
    cut: Cut
    apart: Apart


def write_page(page: Path, found: Mapping[str, Sequence[Difference]], wanted: Mapping[str, int]) -> None:
    """Puts the tables in the place of those that are there.

    Args:
        page: with a line `<!-- NAME begins -->` and another `<!-- NAME ends -->` around each of them.
        found: differences by the name of their table: methods, options, unequal.
        wanted: how many there are where everything has been run.
    """
    tables = {
        "made": [_made_where()],
        "methods": [*_of_methods(found["methods"])],
        "options": [*_of_options(found["options"])],
        "unequal": [*_of_unequal(found["unequal"])],
    }
    text = page.read_text(encoding="utf-8")
    for name, lines in tables.items():
        begin, end = f"<!-- {name} begins -->\n", f"<!-- {name} ends -->"
        pattern = re.compile(f"({re.escape(begin)}).*?({re.escape(end)})", re.DOTALL)
        if name in wanted and len(found[name]) < wanted[name]:
            lines = lines if found[name] else []
            lines += ["", f"({len(found[name])} of {wanted[name]} have been run; the command above runs the others.)"]
        body = "\n".join(lines)
        text, count = pattern.subn(lambda match, body=body: f"{match[1]}\n{body}\n\n{match[2]}", text)
        assert count == 1, (page, name)
    page.write_text(text, encoding="utf-8")


def _made_where() -> str:
    versions = [f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES if importlib.util.find_spec(name)]
    state = state_of(Path(__file__).parent)
    commit = "" if state is None else f", commit {state['commit'][:7]}{' with changes' if state['dirty'] else ''}"
    machine = f"{cpu_model()}, {num_cores()} cores, one thread a process"
    without = "" if importlib.util.find_spec("deepspeed") else " Without DeepSpeed, so without ZeRO."
    return f"On {datetime.date.today():%d %B %Y}{commit}: {machine}; {', '.join(versions)}.{without}"


def _of_methods(found: Sequence[Difference]) -> Iterator[str]:
    yield _row("", "a step of 8", "loss", "gradient norm", "weights", "same rows", "same sequences")
    yield _row(*["---"] * 7)
    for one in found:
        apart = one.apart
        weights = f"{apart.weights:.0e}" if apart.first_other is None else "–"
        yield _row(one.case.title, one.cut.title, *_numbers(apart), weights, _rows(apart), _sequences(apart))


def _of_options(found: Sequence[Difference]) -> Iterator[str]:
    yield _row("", "with", "loss", "gradient norm", "of all else that is logged", "same rows", "same sequences")
    yield _row(*["---"] * 7)
    for one in found:
        metric = f"{one.apart.metric:.0e} ({one.apart.worst_metric})" if one.apart.metric else "0"
        cells = [*_numbers(one.apart), metric, _rows(one.apart), _sequences(one.apart)]
        yield _row(one.case.method, f"`{one.case.flags}`", *cells)


def _of_unequal(found: Sequence[Difference]) -> Iterator[str]:
    yield _row("", "with", "loss", "gradient norm", "why")
    yield _row(*["---"] * 5)
    for one in found:
        yield _row(one.case.method, f"`{one.case.title}`", *_numbers(one.apart), one.case.why)


def _numbers(apart: Apart) -> list[str]:
    return [f"{apart.loss:.0e}", f"{apart.gradient_norm:.0e}"]


def _rows(apart: Apart) -> str:
    return f"{apart.same_rows} of {apart.steps} steps"


def _sequences(apart: Apart) -> str:
    from_there = "" if apart.first_other is None else f"; another in step {apart.first_other}"
    return f"{apart.same_sequences} of {apart.sequences}{from_there}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
