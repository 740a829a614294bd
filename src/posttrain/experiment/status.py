"""`posttrain status`: what `dvc repro` would run and why, which key and which file; and what would be overlooked.

DVC says that a frozen stage "didn't change", whatever did, and nothing of a tree that no commit holds. Both are said
first here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from posttrain.checkout import changed_files, git, root_of, untracked_code
from posttrain.errors import UserError
from posttrain.experiment.command_words import Words
from posttrain.experiment.pipeline import Pipeline
from posttrain.experiment.unfinished import unfinished
from posttrain.runs import shown
from posttrain.wording import some

USAGE = "posttrain status [--check] [--format text|json]"
_DESCRIPTION = """Says what `dvc repro` would run and why: which key of params.yaml, which file. Frozen stages that are
out of date, and files that are in no commit, come first."""
_OUTS = {
    "deleted": "missing, and in the cache: `dvc checkout`",
    "not in cache": "not in the cache: `dvc pull`, or it is made again",
    "modified": "changed since the stage wrote it: `dvc checkout --force` brings that back",
}
_DEPS = {"deleted": "missing", "new": "new in its list"}


Reason = tuple[str, str, str]


@dataclass
class Finding:
    """A stage that would run, or would if it were not frozen.

    Args:
        stage: its name.
        frozen: DVC leaves it alone.
        reasons: kind ("params", "code", "reads", "writes", "stage"), what, and what is with it.
        goes_on_from: checkpoint of an interrupted run that it would find.
        followers: stages that run afterwards, if what it writes changes.
    """

    stage: str
    frozen: bool
    reasons: list[Reason]
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
    parser = Words(USAGE, _DESCRIPTION)
    parser.add_argument("--check", action="store_true", help="exit code 1 where something would run, for CI")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="json: the same for programs")
    options = parser.parse_args(words)
    report = read_report(Path())
    print(as_json(report) if options.format == "json" else as_text(report))
    return int(options.check and bool(report.to_run))


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
        return Finding(name, stage.frozen, [("stage", "it", "is running now")])
    if name not in pipeline.lock:
        reasons = [("stage", "it", "has never run: dvc.lock knows nothing of it")]
    else:
        lock = pipeline.lock[name]
        made = {out["path"] for out in lock.get("outs", [])}
        reasons = [("params", key, f"{shown(old)} → {shown(new)}") for key, old, new in pipeline.changed_params(name)]
        if lock.get("cmd") != stage.command:
            reasons.append(("stage", "its command", f"{lock.get('cmd')} → {stage.command}"))
        gone = made - {*stage.outs, *stage.tracked}
        gone |= {dep["path"] for dep in lock.get("deps", [])} - set(stage.deps)
        reasons += [("stage", path, "no longer in its list") for path in sorted(gone)]
        reasons += [(_kind(path), path, _DEPS.get(word, word)) for path, word in deps.items()]
        reasons += [("writes", path, _OUTS.get(word, word) if path in made else "new") for path, word in outs.items()]
        if is_other and not reasons:
            reasons.append(("stage", "its entry in dvc.yaml", "changed"))
    if not reasons:
        return None
    data_is_same = all(path.endswith(".py") for path in deps)
    return Finding(name, stage.frozen, reasons, unfinished(pipeline.root, stage) if data_is_same else None)


def _kind(dep: str) -> str:
    return "code" if dep.endswith(".py") else "reads"


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
            lines += [f"     {line}" for line in _lines(finding.reasons)]
            lines += [f"     `dvc unfreeze {finding.stage}` lets it run"]
    if report.commit is None:
        lines.append("!! NO COMMIT: this is no git checkout with a commit; no result can be come back to")
    elif report.changed:
        lines.append(
            f"!! DIRTY TREE: {some(report.changed)} not as in {report.commit}; a result from it has no commit to "
            "come back to"
        )
    if report.untracked:
        lines.append(f"!! UNTRACKED CODE: {some(report.untracked)}; git knows nothing of it: `git add` it")
    return lines


def _entry(finding: Finding) -> list[str]:
    goes_on = [f"    goes on from {finding.goes_on_from}"] if finding.goes_on_from else []
    return [f"  {finding.stage}", *(f"    {line}" for line in _lines(finding.reasons)), *goes_on]


def _lines(reasons: Sequence[Reason]) -> list[str]:
    """A line for all of which the same is to be said: after a pull of new code, a hundred would bury the rest."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for kind, what, how in reasons:
        grouped.setdefault((kind, how if kind != "params" else f"{what} {how}"), []).append(what)
    lines = []
    for (kind, how), paths in grouped.items():
        number = f"{len(paths)} paths " if len(paths) > 1 and kind != "params" else ""
        text = how if kind == "params" else f"{number}{how}: {some(paths)}" if number else f"{paths[0]} {how}"
        lines.append(f"{kind:<7} {text}")
    return lines
