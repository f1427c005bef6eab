"""Extracting a completion's Python program: a fenced block, <answer> tags, or the whole text. Nothing is run here."""

from __future__ import annotations

import ast
import re
import warnings
from textwrap import indent

from unmask.verifiers.answers import before_end

LONGEST_PROGRAM = 10_000  # characters; the worst of that length keep Python's parser busy for some 50 ms
_FENCED = re.compile(r"^[ \t]{0,9}```(\w*)[^\n]*\n(.*?)(?:^[ \t]{0,9}```|\Z)", re.DOTALL | re.MULTILINE)
_TAGGED = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL)
_PYTHON = ("python", "python3", "py", "Python")
_HEAD = re.compile(r"^(?:async[ \t]+)?def[ \t]+(\w+)", re.MULTILINE)
_EMPTY_LINES = re.compile(r"\A(?:[ \t\r]*\n)+")


def program(completion: str, stub: str = "", name: str = "") -> str | None:
    """The Python program of a completion; None where there is none that parses.

    `stub`: the beginning of a program, up to the body of its last function, called `name`. A completion either defines
    that function itself, and the stub's lines above it are kept, or continues with its body.
    """
    code = _code(completion)
    if not code or len(code) > LONGEST_PROGRAM:
        return None
    tree = parsed(code)
    defined = defined_names(tree) if tree else set()
    if name in defined if stub else defined:
        return (preamble(stub, name) or "") + code
    return _continued(stub, code) if stub else None


def preamble(stub: str, name: str) -> str | None:
    """The imports and helpers above the stub's last function; None if that is not called `name`."""
    heads = list(_HEAD.finditer(stub))
    return stub[: heads[-1].start()] if heads and heads[-1][1] == name else None


def parsed(text: str) -> ast.Module | None:
    """The syntax tree of a program; None if it does not parse."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def defined_names(tree: ast.Module) -> set[str]:
    """Names of the functions, classes and variables that a module defines; not what it imports."""
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    assigned = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    named = {node.name for node in tree.body if isinstance(node, definitions)}
    return named | {target.id for target in assigned if isinstance(target, ast.Name)}


def _code(completion: str) -> str:
    """The last fenced block of Python, else the last one of no language, else <answer>, else everything."""
    text = before_end(completion)
    blocks = [(language, code) for language, code in _FENCED.findall(text) if code.strip()]
    found = [code for language, code in blocks if language in _PYTHON]
    found = found or [code for language, code in blocks if not language]
    found = found or [code for code in _TAGGED.findall(text) if code.strip()]
    code = found[-1] if found else text
    return _EMPTY_LINES.sub("", code).rstrip()


def _continued(stub: str, code: str) -> str | None:
    """The stub with a body; one without indentation, or without that of its first line, is indented."""
    for text in (code, indent(code, "    "), "    " + code):
        body = _indented(text)
        if _does_something(parsed(f"def body():\n{body}\n")):
            whole = f"{stub.rstrip()}\n{body}\n"
            return whole if parsed(whole) else None
    return None


def _does_something(tree: ast.Module | None) -> bool:
    """Tell whether a function's body is more than expressions; a word alone is one."""
    function = tree.body[0] if tree else None
    return isinstance(function, ast.FunctionDef) and not all(isinstance(node, ast.Expr) for node in function.body)


def _indented(text: str) -> str:
    """The lines up to the first one without indentation: a function ends there."""
    lines = text.split("\n")
    ends = (number for number, line in enumerate(lines) if line.strip() and line[0] not in " \t")
    return "\n".join(lines[: next(ends, len(lines))])
