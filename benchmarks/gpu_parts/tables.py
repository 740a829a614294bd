"""Results as markdown: a table of checks, of steps, of sampling, and of where the time goes; then what failed."""

from __future__ import annotations

from typing import Any

_STEP_COLUMNS = {
    "seconds a step": "{:.4f}",
    "tokens a second": "{:,.0f}",
    "MFU": "{:.1%}",
    "peak memory, MiB": "{:,.0f}",
    "seconds to the first timed step": "{:.1f}",
}


def page(results: dict[str, Any]) -> str:
    """The whole page.

    Args:
        results: from gpu.py.
    """
    parts = results["parts"]
    done = {name: part["found"] for name, part in parts.items() if part["state"] == "done"}
    facts = ", ".join(f"{name} {value}" for name, value in results["facts"].items())
    lines = [f"# {results['title']}", "", facts, "", *_checks(done), *_steps(done), *_rollouts(done), *_profiles(done)]
    if "waiting" in done:
        places = done["waiting"]["waits of a whole run, loading and logging among them"]
        lines += ["", "## Waits", "", f"In {done['waiting']['steps']} steps and what is around them:", ""]
        lines += [f"- {count} × `{place}`" for place, count in places.items()] or ["none seen"]
    others = {name: part for name, part in parts.items() if part["state"] != "done"}
    if others:
        lines += ["", "## Not measured", ""]
        for name, part in others.items():
            last = (part.get("traceback") or "").strip().splitlines()[-1:] or [""]
            lines.append(f"- {name}: {part['state']}{' · ' + last[0][:300] if last[0] else ''}")
    return "\n".join(lines) + "\n"


def _checks(done: dict[str, Any]) -> list[str]:
    rows = [
        f"| {name}: {what} | {value['difference']:.2e} | {value['allowed']:.0e} |"
        for name in ("attention", "log-probs", "engine")
        for what, value in done.get(name, {}).items()
        if isinstance(value, dict)
    ]
    head = ["## Checks", "", "| largest relative difference | found | allowed |", "|---|---|---|"]
    return [*head, *rows, ""] if rows else []


def _steps(done: dict[str, Any]) -> list[str]:
    rows: dict[str, dict[str, Any]] = {}
    notes = []
    for name, found in done.items():
        if "seconds a step" in found:
            rows[name] = found
        elif "posttrain" in found:
            rows |= {f"{name}, {side}": found[side] for side in ("posttrain", "trl") if side in found}
            if "times as fast" in found:
                memory = found.get("share of its memory")
                beside = "" if memory is None else f", {memory:.2f}× the memory"
                if "losses differ by" in found:
                    beside += f", losses within {found['losses differ by']:.1e}"
                notes.append(f"{name}: {found['times as fast']:.2f}× as fast as trl{beside}")
    if not rows:
        return []
    lines = ["## Steps", "", f"| | {' | '.join(_STEP_COLUMNS)} |", "|---" * (1 + len(_STEP_COLUMNS)) + "|"]
    for name, found in rows.items():
        cells = [form.format(found[key]) if key in found else "" for key, form in _STEP_COLUMNS.items()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, "", *notes, ""]


def _rollouts(done: dict[str, Any]) -> list[str]:
    ways = {name: way for name, way in done.get("rollouts", {}).items() if isinstance(way, dict)}
    lines = ["## Sampling", "", "| | tokens a second | milliseconds a step |", "|---|---|---|"]
    for name, way in ways.items():
        step = f"{way['milliseconds a step']:.2f}" if "milliseconds a step" in way else ""
        lines.append(f"| {name} | {way['tokens a second']:,.0f} | {step} |")
    return [*lines, ""] if ways else []


def _profiles(done: dict[str, Any]) -> list[str]:
    profiles = {}
    for name, found in done.items():
        for way, value in {"": found, **{k: v for k, v in found.items() if isinstance(v, dict)}}.items():
            if "profile" in value:
                profiles[f"{name} {way}".strip()] = value["profile"]
    lines = [
        "## Where the time goes",
        "",
        "| | busy | kernels | µs a kernel | the longest kinds | verdict |",
        "|---" * 6 + "|",
    ]
    for name, profile in profiles.items():
        shares = ", ".join(
            f"{kind} {share:.0%}" for kind, share in list(profile["shares of the busy time"].items())[:3]
        )
        lines.append(
            f"| {name} ({profile['on']}) | {profile['busy']:.0%} | {profile['kernels']:,} | "
            f"{profile['microseconds a kernel']:.1f} | {shares} | {profile['verdict']} |"
        )
    return lines if profiles else []
