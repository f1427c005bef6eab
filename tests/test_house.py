"""The house's own rules, where a machine can read them: rooms, lengths, docstrings, traits that nobody asks for."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "unmask"
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST_FILE, LONG, LONGEST = 350, 40, 80  # lines
MOST_ENTRIES = 29
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

# Rooms whose pieces declare their traits: nothing there asks a piece for its type or for what it may have.
OF_PIECES = ("objective", "methods", "sampling")
QUESTIONS = {"isinstance", "issubclass", "getattr", "hasattr", "type"}
NOT_OF_PIECES = {  # functions that ask, and why
    "_check_traits": "refuses a piece that declares no traits, in one line",
    "position_draws": "a key is a number or a tensor of them",
    "words": "a piece's name in a table",
    "_details": "a piece's numbers in a table",
    "put": "tensors of the sampler's state, by name",
}


def functions(path):
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, FUNCTIONS)]


def lines(node):
    return node.end_lineno - node.lineno + 1


def name_of(path):
    return str(path.relative_to(PACKAGE))


def test_package_shows_few_entries():
    entries = [entry.name for entry in PACKAGE.iterdir() if entry.name != "__pycache__"]
    assert len(entries) <= MOST_ENTRIES, sorted(entries)


def test_files_and_functions_are_short():
    files = [name_of(path) for path in FILES if len(path.read_text().splitlines()) > LONGEST_FILE]
    long = [f"{name_of(path)}: {node.name}" for path in FILES for node in functions(path) if lines(node) > LONGEST]
    assert files + long == []


def test_nine_in_ten_functions_are_under_forty_lines():
    lengths = [lines(node) for path in FILES for node in functions(path)]
    assert sum(length < LONG for length in lengths) >= 0.9 * len(lengths)


def is_public(node):
    return isinstance(node, (*FUNCTIONS, ast.ClassDef)) and not node.name.startswith("_")


def test_public_names_have_docstrings():
    """What a class does as its protocol says needs none of its own."""
    missing, members, documented = [], {}, set()
    for path in FILES:
        module = ast.parse(path.read_text())
        for node in filter(is_public, module.body):
            if not ast.get_docstring(node):
                missing.append(f"{name_of(path)}: {node.name}")
            for member in filter(is_public, node.body if isinstance(node, ast.ClassDef) else []):
                if ast.get_docstring(member):
                    documented.add(member.name)
                else:
                    members[f"{name_of(path)}: {node.name}.{member.name}"] = member.name
    assert missing + [place for place, name in members.items() if name not in documented] == []


@pytest.mark.parametrize("room", OF_PIECES)
def test_nothing_asks_a_piece_for_its_type(room):
    asked = [
        f"{name_of(path)}: {node.name} calls {call.func.id}"
        for path in sorted((PACKAGE / room).rglob("*.py"))
        for node in functions(path)
        if node.name not in NOT_OF_PIECES
        for call in ast.walk(node)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in QUESTIONS
    ]
    assert asked == []
