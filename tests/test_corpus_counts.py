"""How many broken inputs the corpus holds, in all its parts."""

import importlib
from pathlib import Path

from corpus import flags

FOLDER = Path(flags.__file__).parent


def test_the_corpus_is_as_large_as_it_should_be() -> None:
    """Every part is counted, and no case twice: neither its title nor what it is made of."""
    modules = {path.stem: importlib.import_module(f"corpus.{path.stem}") for path in sorted(FOLDER.glob("*.py"))}
    assert len(modules) >= 5 and all(module.CASES for module in modules.values())
    titles = [(name, title) for name, module in modules.items() for title in module.CASES]
    contents = {(name, repr(case)) for name, module in modules.items() for case in module.CASES.values()}
    assert len(set(titles)) == len(titles) >= 300
    assert len(contents) == len(titles)
