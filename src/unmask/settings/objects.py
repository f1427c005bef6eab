"""Python objects among settings: what a recipe.toml cannot hold is written there as `python:NAME`. Torch-free."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import Field, fields, is_dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from unmask.errors import UserError

PYTHON = "python:"  # in the place of FILE.py, of what was given as an object
_PLAIN = (int, float, bool, str, type(None))


def object_name(value: Any) -> str:
    """What is written of an object: `python:` and the name of the function or class."""
    name = getattr(value, "__name__", type(value).__name__)
    return PYTHON + name.replace(",", "")


def written(value: Any) -> Any:
    """The value of a plain setting as TOML holds it."""
    return value if isinstance(value, _PLAIN) else object_name(value)


def is_opaque(field: Field[Any], value: Any) -> bool:
    """Whether a choice's value, not one of the package's own, is no dataclass of plain settings found by its place."""
    if type(value) in field.metadata["choices"].values():
        return False
    if not is_dataclass(value) or not is_found_by_place(type(value)):
        return True
    plain = [each for each in fields(value) if not {"choices", "section"} & set(each.metadata)]
    return not all(isinstance(getattr(value, each.name), _PLAIN) for each in plain)


def is_found_by_place(named: Any) -> bool:
    """Whether a function or class is found as MODULE:NAME in another process: not in a script, nor within a function.

    To import the script that started a run would run it again.
    """
    module, name = getattr(named, "__module__", None), getattr(named, "__qualname__", None)
    if module in (None, "__main__") or not isinstance(name, str) or "<" in name:
        return False
    return reduce(lambda found, part: getattr(found, part, None), name.split("."), sys.modules.get(module)) is named


def check_no_objects(values: Mapping[str, Any], recipe: str) -> None:
    """Raise UserError where a recipe, its values by dotted paths, names what was a Python object of another process."""
    for path, value in values.items():
        words = value.split(",") if isinstance(value, str) else []
        if any(word.strip().startswith(PYTHON) for word in words):
            run = str(Path(recipe).parent)
            raise UserError(
                f"{path} is {value!r} in {recipe}, an object of the Python that started the run, which no file holds: "
                f"go on there, with unmask.Trainer(...).train(resume_from={run!r})"
            )
