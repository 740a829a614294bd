"""Which files of this repository a script imports: what a DVC stage must name in its `deps`.

DVC does not look into code: a module that is imported but not listed can change without the stage running again. So
a test compares the lists in dvc.yaml with these; `make deps` rewrites them, and
`python -m posttrain.experiment.closure scripts/sft.py` prints one.
"""

import ast
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "posttrain"


def import_closure(script: Path, source_root: Path) -> list[Path]:
    """Find the files of the package that a script imports, directly or through others.

    Imports inside functions count; imports under `if TYPE_CHECKING:` do not, since they never run. Importing `a.b.c`
    runs `a/__init__.py` and `a/b/__init__.py` too, so these belong to it, with all that they import.

    Args:
        script: A Python file.
        source_root: The folder that holds the package's folder (`src`).

    Returns:
        The script itself and the package's files, sorted by path, as paths under `script`'s and `source_root`'s own.

    Raises:
        FileNotFoundError: The script, or a module of the package that something imports, does not exist.
    """
    found = {script}
    open_files = [script]
    while open_files:
        path = open_files.pop()
        for name in imported_modules(path, source_root):
            for new in _files_of(name, source_root) - found:
                found.add(new)
                open_files.append(new)
    return sorted(found)


def imported_modules(path: Path, source_root: Path) -> Iterator[str]:
    """Yield the dotted name of each module of the package that a file imports.

    Args:
        path: A Python file.
        source_root: The folder that holds the package's folder.
    """
    for node in _imports(path.read_text(encoding="utf-8"), str(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _is_ours(alias.name))
        else:
            module = _absolute(node, path, source_root)
            if _is_ours(module):
                yield module
                # A name in `from package import name` may be a module or a thing defined in it.
                names = (f"{module}.{alias.name}" for alias in node.names)
                yield from (name for name in names if _module_file(name, source_root))


@functools.cache
def _imports(text: str, path: str) -> list[ast.Import | ast.ImportFrom]:
    """The imports in a source text, which the scripts of many stages share; a mistake in it names its path."""
    nodes = _running_nodes(ast.parse(text, filename=path))
    return [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]


def _running_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk a syntax tree without the bodies of `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield other
                yield from _running_nodes(other)
        else:
            yield child
            yield from _running_nodes(child)


def _absolute(node: ast.ImportFrom, path: Path, source_root: Path) -> str:
    if not node.level:
        return node.module or ""
    package = path.relative_to(source_root).parts[: -node.level]
    return ".".join([*package, *(node.module.split(".") if node.module else [])])


def _is_ours(module: str) -> bool:
    return module == PACKAGE or module.startswith(PACKAGE + ".")


def _module_file(name: str, source_root: Path) -> Path | None:
    base = source_root.joinpath(*name.split("."))
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _files_of(name: str, source_root: Path) -> set[Path]:
    """The files that run when a module is imported: its own, and the `__init__.py` of each package around it."""
    own = _module_file(name, source_root)
    if own is None:
        raise FileNotFoundError(f"{name} is imported, but there is no such module under {source_root}")
    parts = name.split(".")
    around = (_module_file(".".join(parts[:depth]), source_root) for depth in range(1, len(parts)))
    return {own, *(path for path in around if path)}


def with_current_deps(pipeline: str, root: Path) -> str:
    """Put the import closure of each stage's script into the text of a dvc.yaml, in place of the .py files in `deps`.

    Args:
        pipeline: The text, with two spaces a level and `cmd` before `deps` in each stage.
        root: The repository.

    Returns:
        The text, with all other lines as they were.
    """
    lines: list[str] = []
    script, in_deps = "", False
    for line in [*pipeline.splitlines(), ""]:  # the last one ends a list at the end of the file, and the text
        if line.startswith("    cmd: python "):
            script = line.split()[2]
        if in_deps and not line.startswith("      - "):
            lines += [
                f"      - {path.relative_to(root).as_posix()}" for path in import_closure(root / script, root / "src")
            ]
        in_deps = line == "    deps:" or (in_deps and line.startswith("      - "))
        if not (in_deps and line.endswith(".py")):
            lines.append(line)
    return "\n".join(lines)


def main() -> None:
    """Print the import closure of the scripts named on the command line; with none named, rewrite dvc.yaml."""
    for script in sys.argv[1:]:
        for path in import_closure(Path(script), Path("src")):
            print(f"- {path.as_posix()}")
    if not sys.argv[1:]:
        pipeline = Path("dvc.yaml")
        pipeline.write_text(with_current_deps(pipeline.read_text(encoding="utf-8"), Path()), encoding="utf-8")


if __name__ == "__main__":
    main()
