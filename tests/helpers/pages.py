"""The fenced blocks of the documentation, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
MADE = {"methods.md"}  # from the code, whose formulas are its only blocks
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").glob("*.md") if page.name not in MADE)]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"<!-- not run: (.+) -->\s*\Z")
_FILE = re.compile(r"`([\w.-]+\.(?:jsonl|toml))`")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block.

    language: empty for commands. not_run: why no test runs it, from `<!-- not run: REASON -->` above it. file: the name
    that it has on the page, as the first words of a Python file or the last file named in the paragraph above.
    """

    page: Path
    language: str
    text: str
    not_run: str | None
    file: str | None

    @property
    def commands(self) -> list[str]:
        """Commands, a line each, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in (line.partition("  #")[0].strip() for line in lines) if line and line[0] != "#"]


def all_blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, in their order."""
    text = page.read_text()
    for match in _BLOCK.finditer(text):
        language, body = match.groups()
        above = text[: match.start()]
        reason = _NOT_RUN.search(above)
        own = body.startswith('"""') and re.match(r'"""(\w+\.py)\b', body)
        named = _FILE.findall(above.rsplit("\n\n", 2)[-1]) if language in ("jsonl", "toml") else []
        file = own.group(1) if own else named[-1] if named else None
        yield Block(page=page, language=language, text=body, not_run=reason and reason.group(1), file=file)


def blocks(page: Path, language: str = "") -> list[str]:
    """The texts of a page's blocks in a language."""
    return [block.text for block in all_blocks(page) if block.language == language]


def commands(page: Path) -> list[str]:
    """The `unmask` commands of a page's blocks, without those that show forms of flags in brackets."""
    lines = "\n".join(blocks(page)).replace("\\\n", " ").splitlines()
    return [line for line in lines if re.match(r"unmask +[a-z]", line) and "[" not in line]


def words_of(command: str) -> list[str]:
    """The words that a shell makes of an `unmask` command, placeholders filled in."""
    words = shlex.split(command, comments=True)[1:]
    return [{"RECIPE": "sudoku-dispo"}.get(word, word) for word in words]


def write_own(directory: Path) -> None:
    """Put the method, task and rule of your-own.md into the files that their first lines name."""
    for text in blocks(ROOT / "docs" / "your-own.md", "python"):
        (directory / text.removeprefix('"""').partition(":")[0]).write_text(text)
