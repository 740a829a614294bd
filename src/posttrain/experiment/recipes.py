"""Whole experiments to start from: each file of recipes/ is a params.yaml. `make use RECIPE=NAME` puts one in place."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posttrain.config import load_yaml, suggestion
from posttrain.disk import write_text
from posttrain.errors import UserError, report_mistakes
from posttrain.experiment.revisions import flat

FOLDER, PARAMS = Path("recipes"), Path("params.yaml")
USAGE = "make use RECIPE=NAME (make use alone lists them)"


def recipes(folder: Path = FOLDER) -> dict[str, str]:
    """What there is: names, and the first line of each."""
    return {path.stem: headline(path) for path in sorted(folder.glob("*.yaml"))}


def headline(path: Path) -> str:
    """The first sentence of a recipe's opening comment."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()


def opening(text: str) -> str:
    """The comment that a recipe begins with, which says what it is and how it is run."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join(lines)


def use(name: str, params: Path = PARAMS, folder: Path = FOLDER) -> Iterator[str]:
    """Put a recipe in the place of params.yaml.

    Args:
        name: of a recipe, or a path.
        params: what it replaces; has to be as git knows it, so that nothing is lost.
        folder: of the recipes.

    Yields:
        what changes, a line a key, and how to go on.

    Raises:
        UserError: there is no such recipe, it is no params file, or params.yaml holds what git does not.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        known = recipes(folder)
        raise UserError(f"RECIPE={name}: no such recipe ({', '.join(known)}){suggestion(name, known)}; {USAGE}")
    text, new, old = path.read_text(encoding="utf-8"), load_yaml(str(path)), load_yaml(str(params))
    lacking = sorted(old.keys() - new.keys())
    if lacking:
        raise UserError(f"{path}: there is no section {', '.join(map(str, lacking))}; a recipe is a whole params.yaml")
    check_committed(params)
    yield from differences(old, new)
    write_text(params, text)
    yield f"\n{params} is now {path}; `git checkout {params}` takes the one before back.\n\n{opening(text)}"


def check_committed(path: Path) -> None:
    """Raises UserError where a file holds what git does not."""
    state = subprocess.run(["git", "status", "--porcelain", "--", str(path)], capture_output=True, text=True)
    if state.returncode:
        raise UserError(
            f"{path} is in no git checkout, so what it holds now would be lost: git init, and commit it first"
        )
    if state.stdout.strip():
        raise UserError(
            f"{path} has changes that are in no commit and would be lost: `git commit {path}` keeps them, "
            f"`git checkout {path}` throws them away"
        )


def differences(old: dict[Any, Any], new: dict[Any, Any]) -> Iterator[str]:
    """The keys that differ, in the order of the new file, then those that it lacks."""
    before, after = flat(old), flat(new)
    for name in [*after, *(name for name in before if name not in after)]:
        if name not in before:
            yield f"+ {name}: {after[name]}"
        elif name not in after:
            yield f"- {name}: {before[name]}"
        elif before[name] != after[name]:
            yield f"  {name}: {before[name]} → {after[name]}"


def main() -> int:
    """Put the recipe in place that is named on the command line; with none named, list them."""
    names = sys.argv[1:]
    if len(names) > 1:
        raise UserError(f"one recipe at a time; usage: {USAGE}")
    if not names:
        known = recipes()
        width = max(map(len, known), default=0)
        print("\n".join(f"  {name:<{width}}  {line}" for name, line in known.items()))
        return 0
    print("\n".join(use(names[0])))
    return 0


if __name__ == "__main__":
    sys.exit(report_mistakes(main))
