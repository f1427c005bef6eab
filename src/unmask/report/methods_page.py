"""What `unmask methods` prints: the table of methods and each method, for a terminal and as docs/methods.md."""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING, Any

from unmask.methods import METHODS
from unmask.methods.base import Method
from unmask.methods.describe import LEGEND, Row, method_rows
from unmask.report.terminal import UNLIMITED
from unmask.settings.reader import leaves

if TYPE_CHECKING:
    from rich.console import Console

NARROW = ["method\npaper\nprovenance", "rows\nunit", "score", "advantage", "surrogate", "forwards", "frozen"]
PAPER = "https://arxiv.org/abs/"


def all_rows() -> list[Row]:
    """The table's lines for all methods, with their default settings."""
    return [row for method in METHODS.values() for row in method_rows(method())]


def docstring(method: Method) -> str:
    """The docstring of the method's file (in the package or not): formula, deviations."""
    return inspect.cleandoc(sys.modules[type(method).__module__].__doc__ or "")


def _settings(method: Method) -> list[tuple[str, str, str]]:
    """Path, default and meaning of every setting."""

    def written(value: Any) -> str:
        return str(value).lower() if isinstance(value, bool) else str(value)

    return [(leaf.path, written(leaf.default), leaf.help) for leaf in leaves(method)]


# ---- for a terminal ----


def print_methods() -> None:
    """Print the table of all methods, a line each where they fit (a file or a pipe), and what its columns mean."""
    console, rows = _console(), all_rows()
    lines = [list(rows[0].cells), *(list(row.cells.values()) for row in rows)]
    if sum(column_widths(lines, UNLIMITED)) + len(lines[0]) <= console.width:
        _print_table(console, lines)
    else:
        _print_table(console, [NARROW, *map(_narrow, rows)], blank_lines=1)
    for name, meaning in LEGEND.items():
        console.print(f"{name}: {meaning}")


def print_method(method: Method) -> None:
    """Print one method: its docstring, its settings, its lines of the table."""
    console = _console()
    console.print(docstring(method), soft_wrap=True)
    console.print()
    flags = [[f"--method.{path.replace('_', '-')}", default, text] for path, default, text in _settings(method)]
    _print_table(console, [["setting", "default", "meaning"], *flags])
    for row in method_rows(method):
        _print_table(console, [["term", row.method], *map(list, list(row.cells.items())[1:])])
    console.print(f"forwards: {LEGEND['forwards']}")


def _narrow(row: Row) -> list[str]:
    """A line in the columns NARROW, several facts below each other."""
    forwards = "with {}\nwithout {}".format(*row.forwards)
    method, rows = f"{row.method}\n{row.paper}\n{row.provenance}", f"{row.rows}\nunit: {row.unit}"
    return [method, rows, row.score, row.advantage, row.surrogate, forwards, row.frozen]


def _console() -> Console:
    """A console that takes brackets and numbers for text."""
    from unmask.report.terminal import terminal_console

    return terminal_console(markup=False, highlight=False, emoji=False)


def _print_table(console: Console, rows: list[list[str]], blank_lines: int = 0) -> None:
    """Rows, the first of them headings, with so many blank lines after each."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, blank_lines, 0), pad_edge=False)
    for heading, width in zip(rows[0], column_widths(rows, console.width - len(rows[0]) + 1), strict=True):
        table.add_column(heading, width=width, overflow="fold")
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table)
    console.print()


def column_widths(rows: list[list[str]], room: int) -> list[int]:
    """Widths of the columns: their longest words, and what is left of `room` where lines would be broken most."""
    columns = [[line for cell in column for line in cell.split("\n")] for column in zip(*rows, strict=True)]
    widths = [max(len(word) for line in lines for word in line.split()) for lines in columns]
    while sum(widths) < room:
        broken = [
            sum(-(-len(line) // width) - 1 for line in lines) for lines, width in zip(columns, widths, strict=True)
        ]
        if not any(broken):
            break
        widths[broken.index(max(broken))] += 1
    return widths


# ---- for docs/methods.md ----


def document() -> str:
    """The Markdown text of docs/methods.md."""
    rows = all_rows()
    made_by = (
        "Made by `unmask methods --markdown` from the code, with every setting at its default; `make docs` does so."
    )
    legend = [f"* **{name}**: {meaning}" for name, meaning in LEGEND.items()]
    table = _markdown_table([list(rows[0].cells), *(list(row.cells.values()) for row in rows)])
    sections = ["\n" + section(method()) for method in METHODS.values()]
    return "\n".join(["# Methods", made_by, "", table, "", *legend, *sections])


def section(method: Method) -> str:
    """The section of docs/methods.md on one method, in Markdown."""
    paper = f"arXiv [{method.paper}]({PAPER}{method.paper}), provenance: {method.provenance}."
    settings = [[f"`{path}`", f"`{default}`", text] for path, default, text in _settings(method)]
    return "\n".join(
        [
            f"## {method.name}",
            f"{inspect.getdoc(type(method))} {paper}",
            f"\n```text\n{docstring(method)}\n```\n",
            _markdown_table([["setting", "default", "meaning"], *settings]),
        ]
    )


def _markdown_table(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
