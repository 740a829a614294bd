"""What stands in the documents: blocks of code with the mark above them, code spans, links and headings."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# docs/flags.md is made from the flags themselves and has a test of its own.
GENERATED = {"docs/flags.md"}
DOCUMENTS = [
    *("README.md", "CONTRIBUTING.md", "SECURITY.md", "skills/posttrain/SKILL.md"),
    *sorted(
        name for name in (str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md")) if name not in GENERATED
    ),
]
_BLOCK = re.compile(r"(?:^<!-- ([^\n]*?) -->\n)?^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        document: where it stands, from the root of the repository.
        line: of its first fence, from 1.
        language: as the fence says.
        text: what is in it.
        mark: the HTML comment above it, without its brackets; empty without one. `run`: CI runs it; `output`: of what
            the block that was run last prints, lines of … stand for others. `config METHOD`,
            `params STAGE`, `rows KIND`, `accelerate`: what a block of YAML or JSON is. `file NAME`: a file that the
            commands after it read.
    """

    document: str
    line: int
    language: str
    text: str
    mark: str

    @property
    def place(self) -> str:
        return f"{self.document}:{self.line}"

    def commands(self) -> list[str]:
        """The commands of a shell block, continued lines joined, comments and empty lines left out."""
        lines = re.sub(r"\\\n\s*", " ", self.text).splitlines()
        return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str, *languages: str) -> list[Block]:
    """The blocks of a document in these languages, or all."""
    text = text_of(document)
    found = [
        Block(document, text[: match.start(2)].count("\n") + 1, match[2], match[3], match[1] or "")
        for match in _BLOCK.finditer(text)
    ]
    return [block for block in found if not languages or block.language in languages]


def prose(document: str) -> str:
    """A document without its blocks and comments."""
    return re.sub(r"^<!--.*?-->$", "", _BLOCK.sub("", text_of(document)), flags=re.MULTILINE)


def spans(document: str) -> list[str]:
    """The code spans of a document, those with two back-ticks and those with one."""
    text = prose(document)
    double = re.findall(r"``([^\n]+?)``", text)
    return [*double, *re.findall(r"`([^`\n]+)`", re.sub(r"``[^\n]+?``", "", text))]


def links(document: str) -> list[str]:
    """The targets of links that stay in the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(document))
    return [target for target in targets if not re.match(r"https?://", target)]


def anchors(document: str) -> set[str]:
    """The anchors that GitHub gives the headings of a document."""
    headings = re.findall(r"^#{1,6} +(.*?) *$", re.sub(_BLOCK, "", text_of(document)), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def words_of(command: str) -> list[str]:
    """A command as a shell would split it, without variables that are set for it alone."""
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    return words
