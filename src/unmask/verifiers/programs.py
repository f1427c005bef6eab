"""Extracting a completion's Python program: a fenced block, <answer> tags, or the whole text. Nothing is run here."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterable
from itertools import islice
from textwrap import dedent, indent

from unmask.verifiers.answers import before_end

LONGEST_PROGRAM = 10_000  # characters; the worst of that length keep Python's parser busy for some 50 ms
_MOST_BLOCKS = 6  # of one completion are tried, the last ones
_DEEPEST = 8  # fences within fences
_FENCE = re.compile(r"^(?P<lead>[^`~\n]{0,200}?)(?P<marks>`{3,}|~{3,})(?P<info>[^`\n]*)$", re.MULTILINE)
_CONTAINER = re.compile(r"[ \t]*(?:(?:[-*+>]|[0-9]{1,9}[.)])[ \t]*)*")  # of list items and quotations
_PYTHON = ("python", "python3", "python2", "py", "py3", "ipython", "ipython3")
_TAGGED = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL | re.IGNORECASE)
_STRAY = re.compile(r"^ {1,3}(?=(?:async |def |class |import |from |@))", re.MULTILINE)
_HEAD = re.compile(r"^(?:async[ \t]+)?def[ \t]+(\w+)", re.MULTILINE)
_EMPTY_LINES = re.compile(r"\A(?:[ \t\r]*\n)+")


def program(completion: str, stub: str = "", name: str = "") -> str | None:
    """The Python program of a completion; None where there is none that parses.

    `stub`: the beginning of a program, up to the body of its last function, called `name`. A completion either defines
    that function itself, and the stub's lines above it are kept, or continues with its body.
    """
    codes = [code for code in _codes(before_end(completion)) if len(code) <= LONGEST_PROGRAM]
    wanted = [whole for whole in map(_whole, codes) if whole is not None]
    for code, defined in wanted:
        if name in defined:
            return (preamble(stub, name) or "") + code
    if not stub:
        return next((code for code, defined in wanted if defined), None)
    bodies = [body for body in (_continued(stub, code) for code in codes) if body is not None]
    return next(filter(_returns, bodies), next(iter(bodies), None))


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


def _codes(text: str) -> list[str]:
    """Where a program may stand, best first: fenced blocks of Python, then of no language, the last of each first.

    Without such blocks, <answer>, or all of the text; and what goes on with a block that the prompt had opened.
    """
    blocks = _blocks(text)
    found = [block for language in (_PYTHON, ("",)) for block in reversed(blocks) if _language(block[0]) in language]
    codes = _first_of(_content(text, *block) for block in found)
    codes = codes or _first_of(tag[1] for tag in reversed(list(_TAGGED.finditer(text)))) or [text]
    fence = _FENCE.search(text)
    if fence is not None and not fence["info"].strip() and not fence["lead"].strip():
        codes.append(text[: fence.start()])
    return [_EMPTY_LINES.sub("", code).rstrip() for code in codes]


def _first_of(codes: Iterable[str]) -> list[str]:
    return list(islice((code for code in codes if code.strip()), _MOST_BLOCKS))


def _blocks(text: str) -> list[tuple[re.Match[str], int]]:
    """The opening fence and the end of each fenced block, by their ends; a block may hold others."""
    blocks: list[tuple[re.Match[str], int]] = []
    opened: list[re.Match[str]] = []
    for fence in _FENCE.finditer(text):
        depth = _closed(opened, fence)
        if depth is not None:
            alone = not fence["lead"].strip(" \t>")
            blocks.append((opened[depth], fence.start() if alone else fence.start("marks")))
            del opened[depth:]
        elif _opens(opened, fence):
            opened = [*opened, fence][-_DEEPEST:]
    # What is cut off ends with the text.
    return blocks + [(fence, len(text)) for fence in reversed(opened)]


def _closed(opened: list[re.Match[str]], fence: re.Match[str]) -> int | None:
    """Which of the open blocks a fence closes; None for one that closes none."""
    if fence["info"].strip() not in ("", "</answer>"):
        return None
    for depth in reversed(range(len(opened))):
        start = opened[depth]
        # One that stands deeper is text, in a docstring perhaps; one behind the last line of code is not.
        alone = not fence["lead"].strip(" \t>")
        deeper = alone and len(fence["lead"].expandtabs(4)) > len(start["lead"].expandtabs(4)) + 3
        if fence["marks"].startswith(start["marks"]) and not deeper:
            return depth
    return None


def _opens(opened: list[re.Match[str]], fence: re.Match[str]) -> bool:
    """Whether a fence opens a block; within another, only one with a language does."""
    alone = _CONTAINER.fullmatch(fence["lead"]) is not None
    return alone and bool(fence["info"].strip()) if opened else alone or _language(fence) in _PYTHON


def _language(fence: re.Match[str]) -> str:
    """The first word behind a fence, in small letters."""
    found = re.match(r"[{.\s]*(\w*)", fence["info"])
    return found[1].lower() if found else ""


def _content(text: str, start: re.Match[str], end: int) -> str:
    code = text[start.end() + 1 : end]
    return re.sub(r"^[ \t]*>[ \t]?", "", code, flags=re.MULTILINE) if ">" in start["lead"] else code


def _whole(code: str) -> tuple[str, set[str]] | None:
    """A program that Python can parse, as it stands or without stray indentation, and what it defines."""
    ways = (code, code.removeprefix(" "), dedent(code), code.lstrip(" \t"), _STRAY.sub("", code))
    for text in dict.fromkeys(ways):
        tree = parsed(text)
        if tree is not None:
            return text, defined_names(tree)
    return None


def _continued(stub: str, code: str) -> str | None:
    """The stub with a body: as it stands, indented as the stub, or with the first line indented as the second."""
    last = (stub.rstrip().split("\n") or [""])[-1]
    margin = _margin(last) or "    "
    second = next((line for line in code.split("\n")[1:] if line.strip()), "")
    for text in (code, indent(code, margin), (_margin(second) or margin) + code.lstrip(" \t")):
        body = _indented(text)
        if _does_something(parsed(f"def body():\n{body}\n")):
            for lines in (body, _moved(body, margin)):
                whole = f"{stub.rstrip()}\n{lines}\n"
                if parsed(whole):
                    return whole
    return None


def _margin(line: str) -> str:
    return line[: len(line) - len(line.lstrip(" \t"))]


def _moved(body: str, margin: str) -> str:
    """A body with another indentation than its own."""
    lines = body.split("\n")
    own = _margin(next((line for line in lines if line.strip()), ""))
    return "\n".join(margin + line.removeprefix(own) if line.strip() else line for line in lines)


def _returns(whole: str) -> bool:
    tree = parsed(whole)
    function = tree.body[-1] if tree else None
    return function is not None and any(isinstance(node, ast.Return | ast.Yield) for node in ast.walk(function))


def _does_something(tree: ast.Module | None) -> bool:
    """Whether a function's body is more than expressions; a word alone is one."""
    function = tree.body[0] if tree else None
    return isinstance(function, ast.FunctionDef) and not all(isinstance(node, ast.Expr) for node in function.body)


def _indented(text: str) -> str:
    """The lines up to the first one without indentation: a function ends there."""
    lines = text.split("\n")
    ends = (number for number, line in enumerate(lines) if line.strip() and line[0] not in " \t")
    return "\n".join(lines[: next(ends, len(lines))])
