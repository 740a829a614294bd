"""Where two recorded runs part: the first step, and of it what comes first."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def first_difference(first: Path, second: Path) -> str | None:
    """In a sentence, the first step and the first tensor in which two runs differ; None where all steps are the same.

    Args:
        first, second: what `--record_steps` has written of each; those of further processes lie beside. A run that
            trains nothing has none.
    """
    from posttrain.step_record import read_steps  # which needs torch

    names = sorted(path.name for path in first.parent.glob(f"{first.stem}*{first.suffix}"))
    pattern = re.compile(rf"{re.escape(first.stem)}(\.\d+)?{re.escape(first.suffix)}")
    found = []
    for name in filter(pattern.fullmatch, names):
        a, b = read_steps(first.with_name(name)), read_steps(second.with_name(name))
        process = name.removeprefix(first.stem).removesuffix(first.suffix).removeprefix(".")
        of_process = f" (process {process})" if process else ""
        for one, other in zip(a, b, strict=False):
            text = _difference(one, other)
            if text is not None:
                found.append((int(one["step"]), f"first difference: step {one['step']}{of_process}, {text}"))
                break
        else:
            if len(a) != len(b):
                found.append((min(len(a), len(b)), f"the runs took {len(a) - 1} and {len(b) - 1} steps{of_process}"))
    return min(found)[1] if found else None


def _difference(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    """What of a step differs first, in the order in which it is computed, and how."""
    tensors = [name for name, digest in one["tensors"].items() if other["tensors"].get(name) != digest]
    what = []
    if one.get("batch") != other.get("batch"):
        what.append("the tokens of its batch")
    for key, words in (("loss", "its loss"), ("gradient_norm", "the norm of its gradient")):
        if one.get(key) != other.get(key):
            what.append(f"{words} ({one.get(key)} and {other.get(key)})")
    if not what and not tensors:
        return None if one.keys() == other.keys() else "what was written of it"
    of_all = f"{len(tensors)} of {len(one['tensors'])} tensors after it"
    named = f"first {tensors[0]}; {of_all}" if tensors else "no tensor"
    begun = "the weights that it begins with" if one["step"] == 0 else "the weights"
    return f"{what[0] if what else begun}: {named}"
