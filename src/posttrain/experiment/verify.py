"""`posttrain verify MODEL`: a model against its provenance. Is it whole, is what it was made from still as it was, and
what of today would make another one: code, params, packages, machine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from posttrain import provenance
from posttrain.checkout import changed_since, git, root_of, state_of
from posttrain.checkpoints import PROVENANCE
from posttrain.errors import UserError
from posttrain.experiment.command_words import Words
from posttrain.experiment.file_checks import (
    DIFFERS,
    OK,
    UNKNOWN,
    Check,
    check_files,
    check_models,
    in_time,
    root_of_files,
)
from posttrain.experiment.params import stage_config
from posttrain.file_hashes import chat_template_of
from posttrain.machine import cpu_model, num_cores
from posttrain.packages import version_of
from posttrain.runs import code_files, shown
from posttrain.wording import some

USAGE = "posttrain verify MODEL [--format text|json]"
_DESCRIPTION = """Checks a model against its provenance.json: the hashes of its files and of all that it was made from,
and what is not today as it was then. Exit code 0: it is whole, and all that it was made from is as it was."""


def run(words: Sequence[str]) -> int:
    """Prints what is and what is not as it was.

    Args:
        words: behind `posttrain verify`.

    Returns:
        0 where the model's files and all that it was made from are as they were, else 1.

    Raises:
        UserError: there is no such model, or nothing tells where it comes from.
    """
    parser = Words(USAGE, _DESCRIPTION)
    parser.add_argument("model", metavar="MODEL", help="folder of the model")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="json: the same for programs")
    options = parser.parse_args(list(words))
    folder = Path(options.model)
    about = read(folder)
    checks = list(verify(folder, about))
    if options.format == "json":
        print(json.dumps({"verdict": verdict(checks), "checks": [asdict(one) for one in checks]}, indent=2))
    else:
        print(as_text(checks))
    return int(any(check.verdict == DIFFERS for check in checks if check.kind != "today"))


def read(folder: Path) -> dict[str, Any]:
    """The provenance of a model.

    Args:
        folder: of the model.

    Raises:
        UserError: there is no such folder, no provenance, or one that cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name the folder of a model")
    file = provenance.find(folder)
    if file is None:
        raise UserError(
            f"{folder}: nothing tells where it comes from: it holds no {PROVENANCE}, nor is there a {folder.name}."
            f"{PROVENANCE} beside it; posttrain writes one with every model that it trains",
            "trust.md",
        )
    try:
        about: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if about["format"] > provenance.FORMAT:
            raise UserError(f"{file}: a later posttrain has written it (format {about['format']}); install that one")
        about["model"]["files"].items()
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}: is no provenance that can be read; train or copy the model again") from error
    return about


def verify(folder: Path, about: dict[str, Any]) -> Iterator[Check]:
    """All checks, in the order of what matters most.

    Args:
        folder: of the model.
        about: its provenance.
    """
    yield check_files("model", folder, about["model"]["files"], "model")
    template = about["chat_template"]["sha256"]
    if template is not None:
        try:
            now = chat_template_of(folder)
        except (OSError, ValueError, AttributeError):
            now = None
        yield Check("chat template", OK if now == template else DIFFERS, in_time(now == template), "model")
    then = Path(about["directory"]["path"])
    for part in ("base_model", "reference"):
        if part in about:
            yield from check_models(part.replace("_", " "), about[part], then)
    if "rewards" in about:
        yield check_files(
            "rewards", root_of_files(then, about["rewards"]["files"]), about["rewards"]["files"], "origin"
        )
    if "files" in about["chat_template"]:
        files = about["chat_template"]["files"]
        yield check_files("chat template's file", root_of_files(then, files), files, "origin")
    for part, words in (("train", "training rows"), ("test", "evaluation rows")):
        rows = about["data"].get(part, {})
        if rows.get("files"):
            yield check_files(words, root_of_files(then, rows["files"]), rows["files"], "origin")
        for name, commit in rows.get("hub", {}).items():
            at = f" at commit {commit[:12]}" if commit else ""
            yield Check(words, UNKNOWN, f"{name} of the hub{at}; not downloaded to look", "origin")
    yield from _today(folder, about)


def verdict(checks: Sequence[Check]) -> str:
    """All in a sentence.

    Args:
        checks: from `verify`.
    """
    bad = {check.kind for check in checks if check.verdict == DIFFERS}
    unknown = [check for check in checks if check.verdict == UNKNOWN and check.kind == "origin"]
    if "model" in bad:
        return "The model is damaged: its files are not those that were saved."
    if "origin" in bad:
        return "The model is whole, but could not be made again here: what it was made from is not as it was."
    rest = f" {len(unknown)} part{'s' * (len(unknown) > 1)} could not be looked at." if unknown else ""
    differing = {check.part for check in checks if check.verdict == DIFFERS}
    if differing == {"git"} and any(check.part == "code" and check.verdict == OK for check in checks):
        return f"The model is whole, and so is all that it was made from; what changed since trains no model.{rest}"
    if "today" in bad:
        return f"The model is whole, and so is what it was made from; today's tree would make another one.{rest}"
    return f"The model is whole, and all that it was made from is as it was.{rest}"


def as_text(checks: Sequence[Check]) -> str:
    """For people.

    Args:
        checks: from `verify`.
    """
    width = max(len(check.part) for check in checks)
    lines = [f"{check.verdict} {check.part:<{width}}  {check.text}" for check in checks]
    return "\n".join([*lines, "", verdict(checks)])


# -- what is not as it was


def _today(folder: Path, about: dict[str, Any]) -> Iterator[Check]:
    yield _code(about["code"])
    yield from _git(about)
    yield from _params(folder, about)
    packages = [
        f"{name} {old} → {new or 'not installed'}"
        for name, old in about["packages"].items()
        if (new := version_of(name)) != old and name != "posttrain"
    ]
    yield _compare("packages", packages, f"{len(about['packages'])} as they were")
    then, found = about["hardware"], []
    gpus = [gpu["name"] for gpu in then["gpus"]]
    if then["cpu"] != cpu_model():
        found.append(f"{then['cpu']} → {cpu_model()}")
    if then["cores"] != num_cores():
        found.append(f"{then['cores']} → {num_cores()} cores")
    if then["gpus"]:
        found.append(f"trained on {len(gpus)} × {gpus[0]}")
    # Another machine may give other last bits; that is no fault of anything here.
    yield Check("machine", UNKNOWN if found else OK, "; ".join(found) or then["cpu"], "today")


def _code(code: dict[str, Any]) -> Check:
    before, now = code["files"], code_files()
    changed = [f"src/posttrain/{name}" for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    return _compare("code", changed, "posttrain's files as they were")


def _git(about: dict[str, Any]) -> Iterator[Check]:
    state = about["directory"]["git"] or about["code"]["git"]
    if state is None or state["commit"] is None:
        yield Check("git", UNKNOWN, "it was trained outside of a checkout", "today")
        return
    commit = state["commit"][:12]
    if state["dirty"]:
        files = some([*state["changed"], *state["untracked"]])
        yield Check("git", UNKNOWN, f"trained from a dirty tree on {commit}; no commit holds it: {files}", "today")
    root = root_of(Path()) or root_of(Path(__file__).parent)
    if root is None or git(root, "cat-file", "-e", state["commit"]) is None:
        yield Check("git", UNKNOWN, f"commit {commit} is not in a checkout here", "today")
        return
    here = state_of(root) or {}
    changed = [name for name in changed_since(root, state["commit"], "src") or []]
    changed += [name for name in changed_since(root, state["commit"], "scripts") or []]
    if here.get("commit") == state["commit"]:
        text = "dirty now: " + some(here["changed"]) if here["changed"] else f"at {commit}, as then"
        yield Check("git", DIFFERS if here["changed"] else OK, text, "today")
    else:
        text = f"{commit} → {str(here.get('commit'))[:12]}; src/ and scripts/: "
        yield Check("git", DIFFERS if changed else OK, text + (some(changed) or "nothing changed"), "today")


def _params(folder: Path, about: dict[str, Any]) -> Iterator[Check]:
    """The section of params.yaml that writes this folder, if there is one, as it is and as it was."""
    file = Path("params.yaml")
    try:
        sections = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
        name = next(
            name
            for name, section in sections.items()
            if isinstance(section, dict) and section.get("output_dir") and folder.samefile(section["output_dir"])
        )
        config, _ = stage_config(name, [])
    except StopIteration:
        return
    except (UserError, OSError, yaml.YAMLError, AttributeError) as error:
        yield Check("params", UNKNOWN, f"params.yaml cannot be read: {error}", "today")
        return
    before, now = about["params"]["all"], provenance.flags(config)
    changed = [
        f"{name}.{key} {shown(before.get(key))} → {shown(now.get(key))}"
        for key in sorted({*before, *now})
        if _plain(before.get(key)) != _plain(now.get(key)) and key not in ("use_cpu", "record_steps")
    ]
    yield _compare("params", changed, f"section {name} as it was")


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _compare(part: str, changed: list[str], same: str) -> Check:
    return Check(part, DIFFERS if changed else OK, some(changed) if changed else same, "today")
