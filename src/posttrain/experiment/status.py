"""`posttrain status`: what `dvc repro` would run and why, which key and which file; and what would be overlooked.

DVC says that a frozen stage "didn't change", whatever did, and nothing of a tree that no commit holds. Both are said
first here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from posttrain.checkout import changed_files, git, root_of, untracked_code
from posttrain.errors import UserError
from posttrain.experiment.options import read_options
from posttrain.experiment.pipeline import Pipeline
from posttrain.experiment.unfinished import unfinished

USAGE = """Usage: posttrain status [--check] [--format text|json]

Says what `dvc repro` would run and why: which key of params.yaml, which file. Frozen stages that are out of date, and
files that are in no commit, come first.
  --check        exit code 1 where something would run, for CI
  --format json  the same for programs"""
_OUTS = {
    "deleted": "missing; in the cache: `dvc checkout` brings it back",
    "not in cache": "not in the cache: `dvc pull` brings it from the remote, or the stage makes it again",
    "modified": "changed since the stage wrote it; `dvc checkout --force` brings that back",
}
_NAMED = 8  # files in one line


@dataclass
class Finding:
    """A stage that would run, or would if it were not frozen.

    Args:
        stage: its name.
        frozen: DVC leaves it alone.
        reasons: kind ("params", "code", "reads", "writes", "stage") and what.
        goes_on_from: checkpoint of an interrupted run that it would find.
        followers: stages that run afterwards, if what it writes changes.
    """

    stage: str
    frozen: bool
    reasons: list[tuple[str, str]]
    goes_on_from: str | None = None
    followers: list[str] = field(default_factory=list)


@dataclass
class Report:
    """What is said.

    Args:
        findings: stages that would run, in the order of dvc.yaml.
        up_to_date: names of the others.
        commit: of the tree; None where there is no git, or no commit.
        changed: tracked files that differ from it, but for those that stages write.
        untracked: files of Python that git does not know.
        results: files written by stages that are not as in the commit.
    """

    findings: list[Finding]
    up_to_date: list[str]
    commit: str | None
    changed: list[str]
    untracked: list[str]

    @property
    def to_run(self) -> list[Finding]:
        """Those that would run."""
        return [finding for finding in self.findings if not finding.frozen]


def run(words: Sequence[str]) -> int:
    """Prints what would run.

    Args:
        words: behind `posttrain status`.

    Returns:
        The exit code.

    Raises:
        UserError: there is no DVC repository here; a word is wrong.
    """
    _, options = read_options(words, USAGE, {"check": None, "format": ("text", "json")})
    if "help" in options:
        print(USAGE)
        return 0
    report = read_report(Path())
    print(as_json(report) if options.get("format") == "json" else as_text(report))
    return int("check" in options and bool(report.to_run))


def read_report(root: Path) -> Report:
    """Looks at the pipeline and the tree.

    Args:
        root: a folder in the repository.

    Raises:
        UserError: there is no DVC repository here.
    """
    pipeline = Pipeline(root)
    findings = [one for one in (_look_at(pipeline, name) for name in pipeline.stages) if one is not None]
    names = {finding.stage for finding in findings}
    for finding in findings:
        finding.followers = [one for one in pipeline.followers(finding.stage) if one not in names]
    top = root_of(pipeline.root)
    commit = git(pipeline.root, "rev-parse", "--short", "--verify", "HEAD") if top else None
    return Report(
        findings,
        [name for name in pipeline.stages if name not in names],
        commit.strip() if commit else None,
        changed_files(top) if top else [],
        untracked_code(top) if top else [],
    )


def _look_at(pipeline: Pipeline, name: str) -> Finding | None:
    stage = pipeline.stages[name]
    try:
        deps, outs, is_other = pipeline.status(name)
    except UserError as error:
        if "is busy" not in str(error):
            raise
        return Finding(name, stage.frozen, [("stage", "it is running now")])
    if name not in pipeline.lock:
        reasons = [("stage", "it has never run: dvc.lock knows nothing of it")]
    else:
        reasons = [("params", _change(key, old, new)) for key, old, new in pipeline.changed_params(name)]
        if is_other:
            reasons += _of_definition(pipeline, name)
        code = [(path, word) for path, word in deps.items() if path.endswith(".py") and word != "new"]
        reasons += [("code", f"{path} {word}") for path, word in code]
        reasons += [("reads", f"{path} {_dep(word)}") for path, word in deps.items() if not path.endswith(".py")]
        reasons += [("writes", f"{path} {_OUTS.get(word, word)}") for path, word in outs.items()]
    if not reasons:
        return None
    data_is_same = all(path.endswith(".py") for path in deps)
    return Finding(name, stage.frozen, reasons, unfinished(pipeline.root, stage) if data_is_same else None)


def _of_definition(pipeline: Pipeline, name: str) -> list[tuple[str, str]]:
    """What of a stage's entry in dvc.yaml is not as dvc.lock has it."""
    stage, lock, found = pipeline.stages[name], pipeline.lock[name], []
    if lock.get("cmd") != stage.command:
        found.append(("stage", f"its command: {lock.get('cmd')} → {stage.command}"))
    for words, now, entries in (
        ("reads", stage.deps, lock.get("deps", [])),
        ("writes", (*stage.outs, *stage.tracked), lock.get("outs", [])),
    ):
        before = {entry["path"] for entry in entries}
        new, gone = [path for path in now if path not in before], sorted(before - set(now))
        found += [("stage", f"dvc.yaml: now {words} {_some(new)}")] if new else []
        found += [("stage", f"dvc.yaml: no longer {words} {_some(gone)}")] if gone else []
    return found or [("stage", "its entry in dvc.yaml has changed")]


def _dep(word: str) -> str:
    return {"deleted": "missing", "modified": "changed", "new": "new, as a dependency"}.get(word, word)


def _change(key: str, old: Any, new: Any) -> str:
    return f"{key} {_shown(old)} → {_shown(new)}"


def _shown(value: Any) -> str:
    return "unset" if value is None else value if isinstance(value, str) else json.dumps(value)


def _some(paths: Sequence[str]) -> str:
    more = len(paths) - _NAMED
    return ", ".join(paths[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def as_json(report: Report) -> str:
    """For programs.

    Args:
        report: what is said.
    """
    return json.dumps(asdict(report), indent=2)


def as_text(report: Report) -> str:
    """For people.

    Args:
        report: what is said.
    """
    lines = [*_shouts(report)]
    lines += [""] if lines else []
    if not report.to_run:
        number = len(report.up_to_date)
        return "\n".join([*lines, f"Nothing to run: {number} stage{'s are' if number != 1 else ' is'} up to date."])
    lines.append(f"Would run ({len(report.to_run)} of {len(report.findings) + len(report.up_to_date)} stages):")
    for finding in report.to_run:
        lines += _entry(finding)
    following = {name: None for finding in report.to_run for name in finding.followers}
    if following:
        lines.append(f"Then, if what they read changes: {', '.join(following)}")
    idle = [name for name in report.up_to_date if name not in following]
    return "\n".join([*lines, *([f"Up to date: {', '.join(idle)}"] if idle else [])])


def _shouts(report: Report) -> list[str]:
    lines = []
    for finding in report.findings:
        if finding.frozen:
            lines += [f"!! FROZEN AND OUT OF DATE: {finding.stage}. DVC calls it unchanged and will not run it:"]
            lines += [f"     {kind:<7} {text}" for kind, text in finding.reasons]
            lines += [f"     `dvc unfreeze {finding.stage}` lets it run"]
    if report.commit is None:
        lines.append("!! NO COMMIT: this is no git checkout with a commit; no result can be come back to")
    elif report.changed:
        lines.append(
            f"!! DIRTY TREE: {_some(report.changed)} not as in {report.commit}; a result from it has no commit to "
            "come back to"
        )
    if report.untracked:
        lines.append(f"!! UNTRACKED CODE: {_some(report.untracked)}; git knows nothing of it: `git add` it")
    return lines


def _entry(finding: Finding) -> list[str]:
    lines = [f"  {finding.stage}"]
    code = [text for kind, text in finding.reasons if kind == "code"]
    if len(code) > _NAMED:  # after a pull of new code, a hundred lines would bury the rest
        words = {text.rpartition(" ")[2] for text in code}
        word = words.pop() if len(words) == 1 else "changed"
        shown = ("code", f"{len(code)} files {word}: {_some([text.rpartition(' ')[0] for text in code])}")
        reasons = [one for one in finding.reasons if one[0] != "code"] + [shown]
    else:
        reasons = finding.reasons
    lines += [f"    {kind:<7} {text}" for kind, text in reasons]
    if finding.goes_on_from:
        lines.append(f"    goes on from {finding.goes_on_from}")
    return lines
