"""Markdown files: lines of at most 120 characters, and links and paths that lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LONGEST = 120
FILES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "studies/*.md", "tests/**/*.md")
    for path in ROOT.glob(pattern)
)
UNWRAPPED = {
    "docs/methods.md",  # made by `unmask methods --markdown`
}
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
COMMAND = re.compile(r"python ((?:benchmarks|studies|tools|examples)/[\w/]+\.py)")


def names(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


def prose(text: str) -> list[tuple[int, str]]:
    """Numbered lines outside tables, code blocks and lines that hold nothing but a link or picture."""
    lines, fenced = [], False
    for number, line in enumerate(text.split("\n"), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.lstrip().startswith("|") and not re.fullmatch(r"\s*([*-] )?!?\[.*\]\(\S*\)", line):
            lines.append((number, line))
    return lines


@pytest.mark.parametrize("name", [name for name in names(FILES) if name not in UNWRAPPED])
def test_markdown_lines_are_at_most_120_characters(name):
    long = [number for number, line in prose((ROOT / name).read_text()) if len(line) > LONGEST]
    assert not long, f"{name}: wrap lines {long}"


@pytest.mark.parametrize("name", names(FILES))
def test_markdown_links_and_commands_name_files_that_exist(name):
    text, folder = (ROOT / name).read_text(), (ROOT / name).parent
    links = [target for target in LINK.findall(text) if "://" not in target]
    missing = [target for target in links if not (folder / target).exists()]
    missing += [script for script in COMMAND.findall(text) if not (ROOT / script).is_file()]
    assert not missing, f"{name} names {missing}"


def test_prose_leaves_out_tables_code_and_links_alone():
    text = "a\n| t |\n```\ncode\n```\n[l](x.md)\n![p](p.png)\nb [l](x.md)"
    assert prose(text) == [(1, "a"), (8, "b [l](x.md)")]
