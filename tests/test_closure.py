"""The import closure, on packages written for the purpose."""

from pathlib import Path

import pytest

from posttrain.experiment.closure import import_closure, with_current_deps


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def closure(root: Path, script: str = "scripts/run.py") -> set[str]:
    return {path.relative_to(root).as_posix() for path in import_closure(root / script, root / "src")}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    write(
        tmp_path,
        {
            "src/posttrain/__init__.py": "",
            "src/posttrain/a.py": "import json\nimport numpy.linalg\n",
            "src/posttrain/b.py": "",
            "src/posttrain/deep/__init__.py": "from posttrain.b import anything\n",
            "src/posttrain/deep/c.py": "",
        },
    )
    return tmp_path


@pytest.mark.parametrize(
    "line",
    [
        "import posttrain.a",
        "import posttrain.a as short",
        "from posttrain.a import thing",
        "from posttrain import a",
        "def f():\n    from posttrain import a",
        "try:\n    import posttrain.a\nexcept ImportError:\n    pass",
        "if typing.TYPE_CHECKING:\n    from posttrain import b\nelse:\n    from posttrain import a",
    ],
)
def test_each_way_to_import_a_module_counts(package: Path, line: str) -> None:
    write(package, {"scripts/run.py": line})
    assert closure(package) == {"scripts/run.py", "src/posttrain/__init__.py", "src/posttrain/a.py"}


def test_what_never_runs_does_not_count(package: Path) -> None:
    write(package, {"scripts/run.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import posttrain.a\n"})
    assert closure(package) == {"scripts/run.py"}


def test_the_packages_around_a_module_run_with_all_that_they_import(package: Path) -> None:
    write(package, {"scripts/run.py": "from posttrain.deep import c\n"})
    assert closure(package) == {
        "scripts/run.py",
        "src/posttrain/__init__.py",
        "src/posttrain/deep/__init__.py",
        "src/posttrain/deep/c.py",
        "src/posttrain/b.py",
    }


def test_relative_imports_and_circles(package: Path) -> None:
    write(package, {"src/posttrain/deep/c.py": "from ..a import x\nfrom . import d\n"})
    write(package, {"src/posttrain/deep/d.py": "from .c import y\n"})
    write(package, {"scripts/run.py": "import posttrain.deep.d\n"})
    assert closure(package) >= {"src/posttrain/a.py", "src/posttrain/deep/c.py", "src/posttrain/deep/d.py"}


def test_a_module_that_is_not_there_is_an_error(package: Path) -> None:
    write(package, {"scripts/run.py": "from posttrain.gone import x\n"})
    with pytest.raises(FileNotFoundError, match=r"posttrain\.gone is imported"):
        closure(package)


def test_the_stage_graph_gets_each_scripts_closure_and_keeps_its_other_lines(package: Path) -> None:
    write(package, {"scripts/run.py": "import posttrain.a\n", "scripts/other.py": ""})
    before = """\
stages:
  first:
    cmd: python scripts/run.py
    deps:
      - data/in
      - src/posttrain/gone.py
    outs:
      - models/x
  second:
    cmd: python scripts/other.py ${item.model}
    outs:
      - scripts/kept.py
    deps:
      - models/x
"""
    after = """\
stages:
  first:
    cmd: python scripts/run.py
    deps:
      - data/in
      - scripts/run.py
      - src/posttrain/__init__.py
      - src/posttrain/a.py
    outs:
      - models/x
  second:
    cmd: python scripts/other.py ${item.model}
    outs:
      - scripts/kept.py
    deps:
      - models/x
      - scripts/other.py
"""
    assert with_current_deps(before, package) == after
    assert with_current_deps(after, package) == after
