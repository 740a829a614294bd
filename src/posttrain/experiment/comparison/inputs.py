"""What two experiments were made from, as params.yaml and dvc.lock say it: where they differ, and what is only a
consequence of that."""

from collections.abc import Iterator, Mapping
from typing import Any

from posttrain.config.yaml_files import parse_scalar
from posttrain.experiment.revisions import Experiment, flat
from posttrain.experiment.tables import MISSING


def changed_params(a: Experiment, b: Experiment) -> dict[str, tuple[Any, Any]]:
    """The parameters that differ, by name; MISSING where one side does not have it."""
    ours, theirs = flat(a.params), flat(b.params)
    return {
        key: (ours.get(key, MISSING), theirs.get(key, MISSING))
        for key in {**ours, **theirs}
        if ours.get(key, MISSING) != theirs.get(key, MISSING)
    }


def changed_inputs(a: Experiment, b: Experiment) -> list[str]:
    """Lines about code and data that differ, without what follows from other differences: a model that was made with
    other parameters is another one anyway."""
    ours, theirs = a.lock.get("stages", {}), b.lock.get("stages", {})
    if not ours or not theirs:
        without = " and ".join(side.name for side, stages in ((a, ours), (b, theirs)) if not stages)
        return [f"there is no dvc.lock in {without}: what code and data it came from is not known"]
    both = [stage for stage in ours if stage in theirs]
    lines = [f"{stage} has only run in {a.name}" for stage in ours if stage not in theirs]
    lines += [f"{stage} has only run in {b.name}" for stage in theirs if stage not in ours]
    made_by = {str(out["path"]): stage for stage in both for out in theirs[stage].get("outs", [])}
    users: dict[str, list[str]] = {}
    for stage in both:
        for path in _differing(ours[stage], theirs[stage], "deps"):
            users.setdefault(path, []).append(stage)
    code = [path for path in users if path.endswith(".py")]
    if code:
        stages = [stage for stage in both if any(stage in users[path] for path in code)]
        lines.append(f"code of {', '.join(stages)}: {_few(sorted(code))}")
    for path, stages in users.items():
        maker = made_by.get(path)
        if path in code:
            continue
        if maker is None:
            lines.append(f"{path}, which {', '.join(stages)} read{'s' * (len(stages) == 1)}")
        elif not _has_cause(ours[maker], theirs[maker]):
            lines.append(f"{path}, though {maker} was told the same: another machine, other versions, or chance")
    lines += [f"the command of {stage}" for stage in both if ours[stage].get("cmd") != theirs[stage].get("cmd")]
    return lines


def not_yet_run(experiment: Experiment) -> dict[str, tuple[Any, Any]]:
    """Parameters whose value in params.yaml is not the one that the figures were made with: what dvc.lock says, and
    what params.yaml says, by name."""
    found = {}
    now = flat(experiment.params)
    for stage in experiment.lock.get("stages", {}).values():
        for key, value in flat(stage.get("params", {}).get("params.yaml", {})).items():
            if not _same(value, now.get(key, MISSING)):
                found[key] = (value, now.get(key, MISSING))
    return found


def _same(locked: Any, value: Any) -> bool:
    """Whether a value of dvc.lock, read by YAML 1.1, is one of params.yaml: 1e-05 is text there, and `no` is false."""
    if isinstance(locked, list) and isinstance(value, list) and len(locked) == len(value):
        return all(map(_same, locked, value))
    words = {True: ("yes", "on"), False: ("no", "off")}.get(locked, ()) if isinstance(locked, bool) else ()
    return locked == value or value in words or (isinstance(locked, str) and parse_scalar(locked) == value)


def _has_cause(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    return (
        ours.get("cmd") != theirs.get("cmd")
        or ours.get("params") != theirs.get("params")
        or any(_differing(ours, theirs, "deps"))
    )


def _differing(ours: Mapping[str, Any], theirs: Mapping[str, Any], kind: str) -> Iterator[str]:
    hashes = [{str(entry["path"]): entry.get("md5") for entry in side.get(kind, [])} for side in (ours, theirs)]
    for path in {**hashes[0], **hashes[1]}:
        if hashes[0].get(path) != hashes[1].get(path):
            yield path


def _few(paths: list[str], most: int = 4) -> str:
    return ", ".join(paths[:most]) + (f" and {len(paths) - most} more" if len(paths) > most else "")
