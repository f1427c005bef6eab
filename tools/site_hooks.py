"""What mkdocs is told beside mkdocs.yml: files outside docs/ that are linked to, pages of methods, public modules.

The pages of docs/ are written for GitHub; here they become pages of a site without a change to them.
"""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DOCS, PACKAGE = ROOT / "docs", ROOT / "src" / "unmask"
FOLDER = "repository"  # of the site, where files outside docs/ lie
METHODS, REFERENCE = "methods.md", "api.md"
_LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)]*)?\)")
_ITEM = re.compile(r"\s*([*+-]|\d+\.)\s")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The navigation, with a page for each method below their table."""
    pages = [METHODS, *({name: f"methods/{name}.md"} for name in sections_of_methods())]
    config.nav = [
        {title: [{"Methods": pages} if entry == METHODS else entry for entry in entries]}
        if isinstance(entries, list)
        else {title: entries}
        for part in config.nav or []
        for title, entries in part.items()
    ]
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """The files of docs/, a page for each method, and what they link to outside docs/, and so on."""
    waiting = [Path(str(file.abs_src_path)) for file in files.documentation_pages()]
    while waiting:
        for target in outside(waiting.pop()):
            uri = f"{FOLDER}/{target.relative_to(ROOT).as_posix()}"
            if uri not in files.src_uris:
                files.append(File.generated(config, uri, abs_src_path=str(target)))
                waiting += [target] if target.suffix == ".md" else []
    for name, text in sections_of_methods().items():
        files.append(File.generated(config, f"methods/{name}.md", content=f"# {name}\n{text}"))
    return files


def sections_of_methods() -> dict[str, str]:
    """The text of each method's section in docs/methods.md, by the method's name."""
    parts = re.split(r"^## (.+)\n", (DOCS / METHODS).read_text(), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def outside(page: Path) -> list[Path]:
    """Files of the repository, not of docs/, that a Markdown file links to; a folder is its README."""
    targets = [target_of(page, target) for _, target, _ in _LINK.findall(page.read_text())]
    return [path for path in targets if path is not None and not path.is_relative_to(DOCS)]


def target_of(page: Path, link: str) -> Path | None:
    """The file of the repository that a link on a page leads to; None where there is none."""
    path = (page.parent / link).resolve()
    path = path / "README.md" if (path / "README.md").is_file() else path
    return path if path.is_file() and path.is_relative_to(ROOT) else None


def on_page_markdown(markdown: str, *, page: Page, **kwargs: Any) -> str:
    """Links as they lead within the site, and a blank line before each list."""
    uri, source = page.file.src_uri, page.file.abs_src_path
    if uri == METHODS:
        markdown = table_of_methods(markdown)
    if uri == REFERENCE:
        markdown = "\n\n".join([markdown, *public_modules()])
    if source is None:
        return with_blank_lines(markdown)

    def led(match: re.Match[str]) -> str:
        start, link, anchor = match.groups()
        path = target_of(Path(source), link)
        if path is None:
            return match.group()
        inside = path.is_relative_to(DOCS)
        place = path.relative_to(DOCS if inside else ROOT).as_posix()
        there = place if inside else f"{FOLDER}/{place}"
        return f"{start}{posixpath.relpath(there, posixpath.dirname(uri) or '.')}{anchor or ''})"

    return with_blank_lines(_LINK.sub(led, markdown))


def table_of_methods(markdown: str) -> str:
    """The page without its sections, which are pages, and the names in its table as links to them."""
    head = re.split(r"^## ", markdown, maxsplit=1, flags=re.MULTILINE)[0]
    for name in sections_of_methods():
        head = re.sub(rf"^\| {re.escape(name)}(?=[ ,])", f"| [{name}](methods/{name}.md)", head, flags=re.MULTILINE)
    return head


def public_modules() -> list[str]:
    """A reference each to the modules among the public names, which stand by themselves."""
    assigned = [node for node in ast.parse((PACKAGE / "__init__.py").read_text()).body if isinstance(node, ast.Assign)]
    lists = [node.value for node in assigned if ast.unparse(node.targets[0]) == "__all__"]
    names = [name for value in lists for name in ast.literal_eval(value)]
    modules = [name for name in names if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()]
    return [f"## unmask.{name} {{#unmask.{name}}}\n\n::: unmask.{name}" for name in modules]


def with_blank_lines(markdown: str) -> str:
    """Markdown in which a list that follows a line of text begins after a blank line, as Python-Markdown wants it."""
    lines: list[str] = []
    fenced = False
    for line in markdown.split("\n"):
        fenced ^= line.lstrip().startswith("```")
        before = lines[-1] if lines else ""
        follows = before.strip() and not before[0].isspace() and not _ITEM.match(before)
        if _ITEM.match(line) and not line[0].isspace() and follows and not fenced:
            lines.append("")
        lines.append(line)
    return "\n".join(lines)
