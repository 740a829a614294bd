"""The pages hang together: links, what the program and the documents say of each other, and the map."""

import ast
import re
from pathlib import Path

import pytest
import yaml
from documents import DOCUMENTS, ROOT, anchors, blocks, links, text_of

from posttrain.config import METHODS


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    for target in links(document):
        path, _, anchor = target.partition("#")
        file = (ROOT / document).parent / path if path else ROOT / document
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(str(file.resolve().relative_to(ROOT))), target


def test_pages_that_messages_name_exist() -> None:
    sources = sorted((ROOT / "src/posttrain").rglob("*.py"))
    named = {page for source in sources for page in re.findall(r"[\"']([a-z_]+\.md(?:#[a-z-]*)?)", source.read_text())}
    assert "troubleshooting.md#out-of-memory" in named
    for page in named:
        file, _, anchor = page.partition("#")
        assert (ROOT / "docs" / file).is_file(), page
        assert not anchor or anchor in anchors(f"docs/{file}"), page


def test_messages_in_troubleshooting_are_those_of_the_program() -> None:
    """The first cell of a row, where it is code of several words, quotes a message; … stands for what varies."""
    said = [text for source in (ROOT / "src/posttrain").rglob("*.py") for text in strings_of(source)]
    rows = re.findall(r"^\| (`.*?`|``.*?``) \|", text_of("docs/troubleshooting.md"), flags=re.MULTILINE)
    messages = [row.strip("` ") for row in rows if " " in row]
    assert len(messages) > 30
    for message in messages:
        for part in filter(None, (part.strip() for part in message.split("…"))):
            assert any(part in re.sub("%(d|s)", "…", text) for text in said), f"nothing says {part!r}"


def strings_of(source: Path) -> list[str]:
    """The texts in a file of Python, with … where something is put in."""
    found = []
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
        elif isinstance(node, ast.JoinedStr):
            found.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
    return found


def test_every_page_is_on_the_map() -> None:
    for page in sorted((ROOT / "docs").glob("*.md")):
        assert f"docs/{page.name}" in links("README.md"), f"the README has no link to docs/{page.name}"


def test_every_method_has_a_page_with_the_same_parts() -> None:
    parts = {"data", "a-first-run", "flags-that-matter", "what-to-watch", "common-mistakes", "differences-from-trl"}
    for method in METHODS:
        assert parts <= anchors(f"docs/{method}.md")
        assert any(block.mark == "run" for block in blocks(f"docs/{method}.md", "sh"))


def test_the_readme_shows_the_two_commands() -> None:
    commands = [command for block in blocks("README.md", "sh") for command in block.commands()]
    assert any(command.startswith("make pipeline") for command in commands)
    assert any(command.startswith("make test") for command in commands)


def test_the_skill_has_its_front_matter_and_is_short() -> None:
    lines = text_of("skills/posttrain/SKILL.md").splitlines()
    end = lines.index("---", 1)
    front = yaml.safe_load("\n".join(lines[1:end]))
    assert lines[0] == "---" and front["name"] == "posttrain" and len(front["description"]) > 100
    assert len(lines) < 300
