"""Targets: command lines, and recipes in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomli_w
from hypothesis import strategies as st

from fuzzing.values import JSON, TEXTS, WORDS, damaged
from unmask.cli.main import parse
from unmask.cli.subcommands import COMMANDS
from unmask.denoisers.directories import find_model
from unmask.methods import METHODS
from unmask.sampling.unmasking import RULES
from unmask.settings.inputs import check_data
from unmask.settings.reader import document_of, leaves
from unmask.settings.recipe import Recipe
from unmask.settings.recipe_files import recipe_names
from unmask.tasks import TASKS

_NAMES = st.sampled_from([*METHODS, *TASKS, *RULES, "nowhere.py:X", "no_module:X", "embedded:sudoku", "embedded:x"])
_SWITCHES = ["--recipe", "--output", "--resume", "--all-methods", "--markdown", "--help", "-h", "--", "-", "--x.y"]


def _flags(name: str) -> dict[str, str]:
    """Flags of a command, each with a value that it takes."""
    known = {leaf.flag: str(leaf.default) for leaf in leaves(COMMANDS[name].settings())}
    return known | {argument: "x" for argument, _ in COMMANDS[name].arguments} | dict.fromkeys(_SWITCHES, "x")


@st.composite
def command_lines(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A command and its words."""
    name = draw(st.sampled_from(sorted(COMMANDS)))
    flags, words = _flags(name), []
    odd = st.one_of(WORDS, _NAMES, st.sampled_from(recipe_names("train")), st.sampled_from(["1", "8", "0"]))
    for _ in range(draw(st.integers(0, 4))):
        flag = draw(st.sampled_from(sorted(flags)))
        value = flags[flag] if draw(st.booleans()) else draw(odd)
        flag = flag if draw(st.integers(0, 9)) else "--" + draw(TEXTS)
        words += [f"{flag}={value}"] if draw(st.booleans()) else [flag, value]
    return name, words


def run_command_line(case: tuple[str, list[str]], directory: Path) -> None:
    """Read a command line, and check what is checked before torch is imported."""
    name, words = case
    given = [word for word in words if word not in ("-h", "--help")]
    settings, _ = parse(name, COMMANDS[name], given, for_help=len(given) < len(words))
    if len(given) == len(words):
        _check(settings)


def _check(settings: Any) -> None:
    if isinstance(settings, Recipe):
        settings.check_blocks()
        find_model(settings.model)
        check_data(settings.task)


_PATHS = [leaf.path for leaf in leaves(Recipe())]
_WHOLE = tomli_w.dumps(document_of(Recipe())).encode()


@st.composite
def recipes(draw: st.DrawFn) -> bytes:
    """The bytes of a recipe: settings with odd values, or a whole recipe that is damaged."""
    if draw(st.booleans()):
        return draw(damaged(_WHOLE))
    path = st.one_of(st.sampled_from(_PATHS), st.sampled_from(["base", "method.name", "task.name", "x", "train"]))
    document: dict[str, Any] = {}
    for place, value in draw(st.lists(st.tuples(path, _toml() | _NAMES), min_size=1, max_size=4)):
        *tables, last = place.split(".")
        table = document
        for key in tables:
            inner = table.setdefault(key, {})
            table = inner if isinstance(inner, dict) else document
        table[last] = value
    return tomli_w.dumps(document).encode()


def _toml() -> st.SearchStrategy[Any]:
    return JSON.filter(_is_toml)


def _is_toml(value: Any) -> bool:
    try:
        tomli_w.dumps({"x": value}).encode()
    except (TypeError, ValueError):  # no null; no lone surrogates
        return False
    return True


def run_recipe(case: bytes, directory: Path) -> None:
    """Read a recipe from a file."""
    (directory / "case.toml").write_bytes(case)
    settings, _ = parse("train", COMMANDS["train"], ["--recipe", str(directory / "case.toml")])
    _check(settings)
