"""Recipes as TOML files: those that ship, those of the user, and the layers that they stand on."""

from __future__ import annotations

import re
import tomllib
from functools import reduce
from importlib.resources import files
from itertools import takewhile
from pathlib import Path

from unmask.errors import UserError
from unmask.settings.reader import Document, merged
from unmask.validation import near
from unmask.validation.user_files import refuse_special, user_path

_SHIPPED = Path(str(files("unmask.settings").joinpath("recipes")))


def recipe_names(command: str) -> list[str]:
    """Names of the shipped recipes of a command: those of `pretrain` begin with its name."""
    return sorted(
        path.stem for path in _SHIPPED.glob("*.toml") if path.stem.startswith("pretrain-") == (command == "pretrain")
    )


def recipe_summaries(command: str) -> dict[str, str]:
    """The first sentence of each shipped recipe of a command, from the comment that begins its file, by name."""
    texts = {name: (_SHIPPED / f"{name}.toml").read_text(encoding="utf-8") for name in recipe_names(command)}
    return {name: first_sentence(text) for name, text in texts.items()}


def first_sentence(text: str) -> str:
    """The first sentence, over all its lines, of the comment with which a TOML text begins; empty without one."""
    lines = takewhile(lambda line: line.startswith("#"), text.splitlines())
    comment = " ".join(line.strip("# ") for line in lines)
    return re.split(r"(?<=[.!?]) +(?=[A-Z])", comment)[0]


def read_recipe(recipe: str) -> Document:
    """The table of a recipe: a shipped name or the path of a TOML file. Raises UserError.

    A recipe with `base = "another"` says only what differs from that one.
    """
    return reduce(merged, recipe_layers(recipe))


def recipe_layers(recipe: str, above: tuple[str, ...] = ()) -> list[Document]:
    """The tables that a recipe is merged of: its bases', then its own; `above` are those that build on this one."""
    if recipe in above:
        raise UserError(f"recipe {recipe!r} has itself as its base ({' on '.join(above)}): remove one base")
    document = _read_toml(recipe)
    base = document.pop("base", None)
    if base is not None and not isinstance(base, str):
        raise UserError(f"base of recipe {recipe!r} is {base!r}: give the name of a shipped recipe, or a path")
    return [document] if base is None else [*recipe_layers(base, (*above, recipe)), document]


def _read_toml(recipe: str) -> Document:
    path = user_path(recipe)
    if not recipe.endswith(".toml"):
        path = _SHIPPED / f"{recipe}.toml"
        if not path.is_file():
            known = recipe_names("train") + recipe_names("pretrain")
            mend = near(recipe, known) or "; unmask recipes lists them"
            raise UserError(f"unknown recipe {recipe!r}{mend}, or give a path that ends in .toml")
    try:
        refuse_special(path)
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"recipe {recipe!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"recipe {recipe!r} is not UTF-8 text: save it as UTF-8") from error
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, and numbers of thousands of digits
        raise UserError(f"recipe {recipe!r} is not TOML: {' '.join(str(error).split())}") from error
