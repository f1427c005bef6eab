"""Recipes: strict settings from TOML and flags, and back. Torch-free."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from unmask.errors import UserError
from unmask.validation import did_you_mean

Document = dict[str, Any]
Settings = TypeVar("Settings")

_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
    "str": (str,),
    "int | None": (int,),
    "float | None": (float, int),
    "str | None": (str,),
}


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One setting: its dotted path, kind, default value and help text."""

    path: str
    kind: str
    default: Any
    help: str


def build(settings: type[Settings], document: Mapping[str, Any], where: str = "") -> Settings:
    """Settings from a table. Raises UserError for unknown keys, wrong types and values that the settings refuse."""
    known = {field.name: field for field in dataclasses.fields(settings) if field.init}  # type: ignore[arg-type]
    renamed = {field.metadata["was"]: name for name, field in known.items() if field.metadata.get("was")}
    values = {}
    for key, value in document.items():
        name = renamed.get(key, key)
        if name not in known:
            raise UserError(f"unknown setting {where + key!r}{did_you_mean(key, list(known))}")
        values[name] = _value(known[name], value, where + name)
    return settings(**values)


def _value(field: dataclasses.Field[Any], value: Any, path: str) -> Any:
    choices = field.metadata.get("choices")
    if choices is not None:
        return _choice(choices, value, path)
    if field.metadata.get("section"):
        return build(field.default_factory, _table(value, path), path + ".")  # type: ignore[arg-type]
    kinds = _KINDS[str(field.type)]
    fits = isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds)
    if not fits:
        raise UserError(
            f"{path} is {value!r}: give {'a number' if float in kinds else 'a value of type ' + str(field.type)}"
        )
    return float(value) if float in kinds else value


def _choice(choices: Mapping[str, type], value: Any, path: str) -> Any:
    table = dict(_table(value, path))
    name = table.pop("name", None)
    if name not in choices:
        raise UserError(f"{path}.name is {name!r}{did_you_mean(str(name), list(choices))}")
    return build(choices[name], table, path + ".")


def _table(value: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{path} is {value!r}: give a table of settings, [{path}]")
    return value


def document_of(settings: Any) -> Document:
    """The table that `build` makes these settings from; unset (None) values are left out."""
    document: Document = {"name": settings.name} if hasattr(settings, "name") else {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            document[field.name] = document_of(value)
        elif value is not None:
            document[field.name] = value
    return document


def leaves(settings: Any, prefix: str = "") -> Iterator[Leaf]:
    """All settings below an instance, as flags show them."""
    for field in dataclasses.fields(settings):
        value, path, text = getattr(settings, field.name), prefix + field.name, field.metadata.get("help", "")
        if field.metadata.get("choices") is not None:
            names = ", ".join(field.metadata["choices"])
            yield Leaf(path=path, kind="name", default=value.name, help=f"{text}: {names}")
        if dataclasses.is_dataclass(value):
            yield from leaves(value, path + ".")
        else:
            yield Leaf(path=path, kind=str(field.type), default=value, help=text)


def override(document: Document, leaf: Leaf, text: str) -> None:
    """Put a flag's text at its place. Raises UserError where it is not of the setting's kind."""
    *parents, key = leaf.path.split(".")
    for parent in parents:
        document = document.setdefault(parent, {})
    if leaf.kind == "name":
        if document.get(key, {}).get("name") != text:
            document[key] = {"name": text}
    else:
        document[key] = _parse(leaf, text)


def _parse(leaf: Leaf, text: str) -> Any:
    kinds = _KINDS[leaf.kind]
    if str in kinds:
        return text
    if bool in kinds and text in ("true", "false"):
        return text == "true"
    for kind in reversed(kinds):
        try:
            return kind(text) if kind is not bool else _refuse(leaf, text)
        except ValueError:
            continue
    return _refuse(leaf, text)


def _refuse(leaf: Leaf, text: str) -> Any:
    wanted = {"bool": "true or false", "int": "an integer", "int | None": "an integer"}.get(leaf.kind, "a number")
    raise UserError(f"--{leaf.path.replace('_', '-')} is {text!r}: give {wanted}")


def recipe_names(command: str) -> list[str]:
    """Names of the shipped recipes of a command: those of `pretrain` begin with its name."""
    folder = Path(str(files("unmask.settings").joinpath("recipes")))
    return sorted(
        path.stem for path in folder.glob("*.toml") if path.stem.startswith("pretrain-") == (command == "pretrain")
    )


def read_recipe(recipe: str, above: tuple[str, ...] = ()) -> Document:
    """The table of a recipe: a shipped name or the path of a TOML file. Raises UserError.

    A recipe with `base = "another"` says only what differs from that one; `above` are those that build on this one.
    """
    if recipe in above:
        raise UserError(f"recipe {recipe!r} has itself as its base ({' on '.join(above)}): remove one base")
    document = _read_toml(recipe)
    base = document.pop("base", None)
    return document if base is None else _merged(read_recipe(str(base), (*above, recipe)), document)


def _merged(base: Document, changes: Document) -> Document:
    """The base with changes; another choice (a table with another name) brings none of the base's settings along."""
    merged = dict(base)
    for key, value in changes.items():
        before = base.get(key)
        if isinstance(value, dict) and isinstance(before, dict) and value.get("name") in (None, before.get("name")):
            value = _merged(before, value)
        merged[key] = value
    return merged


def _read_toml(recipe: str) -> Document:
    path = Path(recipe).expanduser()
    if not recipe.endswith(".toml"):
        path = Path(str(files("unmask.settings").joinpath("recipes"))) / f"{recipe}.toml"
        if not path.is_file():
            known = recipe_names("train") + recipe_names("pretrain")
            raise UserError(f"unknown recipe {recipe!r}{did_you_mean(recipe, known)}, or a path that ends in .toml")
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise UserError(f"recipe {recipe!r} cannot be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"recipe {recipe!r} is not TOML: {error}") from error
