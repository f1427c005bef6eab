"""Settings from layers of tables (base recipe < recipe < flags), strictly read, and back to a table. Torch-free."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import reduce
from typing import Any, TypeVar

from unmask.errors import UserError
from unmask.settings.objects import is_opaque, object_name, written
from unmask.settings.users_classes import check_complete
from unmask.validation import Range, check_number, did_you_mean, load_named, near, place_of

Document = dict[str, Any]
Settings = TypeVar("Settings")

_MOST_SHOWN = 12  # flags in an error line

_LOG = logging.getLogger("unmask")


class Word(str):
    """Text of a flag, in a table: its meaning depends on the setting, and errors about it name the flag."""

    __slots__ = ()


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """A type of plain setting: the types it takes from TOML, how those or a Word are read, what to ask for else."""

    types: tuple[type, ...]
    read: Callable[[Any], Any]
    wanted: str


def _text(value: str) -> str:
    """The text as it is. Raises ValueError where it holds what no file or path can (surrogates, NUL)."""
    if "\0" in value:
        raise ValueError
    return str(value.encode(), "utf-8")


_FINITE = Range(low=-sys.float_info.max, high=sys.float_info.max)
_BOOLS = {"true": True, "false": False, True: True, False: False}
_KINDS = {
    "int": _Kind(types=(int,), read=int, wanted="an integer"),
    "float": _Kind(types=(float, int), read=float, wanted="a number"),
    "bool": _Kind(types=(bool,), read=_BOOLS.__getitem__, wanted="true or false"),
    "str": _Kind(types=(str,), read=_text, wanted="text"),
}


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """A plain setting or a choice: dotted path, kind (int, float, bool, str; a choice: name), value and help text.

    `choices`: the words that it takes, where they are few.
    """

    path: str
    kind: str
    default: Any
    help: str
    choices: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        """The setting on the command line: `--train.learning-rate`."""
        return flag_of(self.path)


def flag_of(path: str) -> str:
    """A dotted path on the command line: train.learning_rate is `--train.learning-rate`."""
    return "--" + path.replace("_", "-")


# ---- from a table ----


def build(settings: type[Settings], document: Mapping[str, Any], where: str = "") -> Settings:
    """An instance of a settings class from a table of TOML values and Words; `where` is the path of the table.

    A setting's old name (`was`) is read with a logged warning, its other name (`also`) without; of two names of one
    setting the later in the table holds. Raises UserError for unknown keys, wrong types and values that the settings
    refuse.
    """
    known = {field.name: field for field in fields(settings) if field.init}  # type: ignore[arg-type]
    table = _renamed(known, document, where)
    for name in table:
        if name not in known:
            raise _unknown(settings, {key: table[key] for key in known if key in table}, where + name, table[name])
    return settings(**{name: _value(known[name], value, where + name) for name, value in table.items()})


def _renamed(known: Mapping[str, Field[Any]], document: Mapping[str, Any], where: str) -> Document:
    """The table with today's names in place of old and other ones."""
    now = {field.metadata["was"]: name for name, field in known.items() if field.metadata.get("was")}
    also = {field.metadata["also"]: name for name, field in known.items() if field.metadata.get("also")}
    for old in sorted(now.keys() & document.keys()):
        names = [_shown(where + name, document[old]) for name in (old, now[old])]
        _LOG.warning("unmask: %s is now %s; the next version refuses the old name", *names)
    return {(now | also).get(key, key): value for key, value in document.items()}


def _value(field: Field[Any], value: Any, path: str) -> Any:
    if "choices" in field.metadata:
        table = {"name": value} if isinstance(value, str) else dict(_table(value, path))
        return build(_class_of(field, table.pop("name", None), table, path), table, path + ".")
    if "section" in field.metadata:
        return build(field.metadata["section"], _table(value, path), path + ".")
    kind = _KINDS[_kind(field)]
    try:
        if type(value) in (*kind.types, Word):
            read = kind.read(value)
            check_number(_shown(path, value), read, field.metadata.get("range", _FINITE))
            return read
    except UserError:
        raise
    except (ValueError, KeyError, OverflowError):
        pass
    below, word = _last(path, value)
    if below != path and isinstance(word, Word):
        raise UserError(f"unknown argument {flag_of(below)!r}: {flag_of(path)} has no settings of its own")
    raise UserError(f"{_shown(path, value)} is {value!r}: give {kind.wanted}")


def _class_of(field: Field[Any], name: Any, table: Mapping[str, Any], path: str) -> Any:
    """The class of a choice; where flags alone change its settings, the default one."""
    if name is None and isinstance(_last(path, table)[1], Word):
        return field.default_factory
    if name is None:
        raise UserError(f"{path}.name is missing{did_you_mean('', field.metadata['choices'])}")
    return chosen(field.metadata["choices"], name, flag_of(path) if isinstance(name, Word) else f"{path}.name")


def chosen(choices: Mapping[str, type[Any]], name: Any, shown: str) -> type[Any]:
    """The settings class that `name` means: one of the `choices`, or the user's own as FILE.py:NAME or MODULE:NAME.

    `shown` is the setting in errors. Raises UserError for an unknown name, and for a class of the user's whose settings
    cannot be read from a table or that lacks what all the `choices` have.
    """
    if not isinstance(name, str) or (name not in choices and ":" not in name):
        raise UserError(f"{shown} is {name!r}{did_you_mean(str(name), choices)}, or FILE.py:NAME")
    if name in choices:
        return choices[name]
    found: type[Any] = load_named(name, "settings class", kind=type)
    if not (isinstance(found, type) and is_dataclass(found)):
        raise UserError(f"{shown} is {name!r}, which is no dataclass: give a class with @dataclass(frozen=True)")
    load_named(place_of(found), "settings class", kind=type)  # as `document_of` names it
    for field in fields(found):
        if field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"{name} has no default for {field.name!r}: give one, every setting has a default")
        if not {"choices", "section"} & set(field.metadata):
            _kind(field)
    check_complete(found, list(choices.values()), f"{shown} is {name!r}")
    return found


def _kind(field: Field[Any]) -> str:
    """Name of a plain setting's kind. Its type is text where its module postpones annotations."""
    declared = field.type.__name__ if isinstance(field.type, type) else str(field.type)
    kind = declared.removesuffix(" | None")
    if kind not in _KINDS:
        raise UserError(
            f"setting {field.name!r} is declared {declared}: declare one of {', '.join(_KINDS)}, or `| None`"
        )
    return kind


def _table(value: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        mend = (
            f"one of its settings, {flag_of(path)}.NAME VALUE"
            if isinstance(value, Word)
            else f"a table of settings, [{path}]"
        )
        raise UserError(f"{_shown(path, value)} is {value!r}: give {mend}")
    return value


def _last(path: str, value: Any) -> tuple[str, Any]:
    """Path and value of the last plain value in a table, where `merged` puts a flag's; of anything else, itself."""
    while isinstance(value, Mapping) and value:
        key, value = list(value.items())[-1]
        path = f"{path}.{key}"
    return path, value


def _shown(path: str, value: Any) -> str:
    return flag_of(path) if isinstance(value, Word) else path


def _unknown(settings: type[Any], others: Mapping[str, Any], path: str, value: Any) -> UserError:
    """What to say of a key that the settings do not have; a flag is compared with all flags beside and below it.

    `others` is the table without unknown keys: it decides which flags there are.
    """
    where = path.rpartition(".")[0] + "." * ("." in path)
    below, word = _last(path, value)
    if not isinstance(word, Word):
        known = [field.name for field in fields(settings) if field.init]
        few = did_you_mean("", known) if len(known) <= _MOST_SHOWN else "; --help lists all"
        return UserError(f"unknown setting {path!r}{near(path.removeprefix(where), known) or few}")
    flags = [leaf.flag.removeprefix("--") for leaf in leaves(build(settings, others, where))]
    wrong, prefix = flag_of(below), flag_of(where)
    few = did_you_mean("", flags, prefix) if len(flags) <= _MOST_SHOWN else "; see --help"
    return UserError(f"unknown argument {wrong!r}{near(wrong.removeprefix(prefix), flags, prefix) or few}")


# ---- to a table, and to flags ----


def document_of(settings: Any) -> Document:
    """The table that `build` makes these settings from; unset (None) values are left out.

    Python objects that no table can say are `python:NAME`.
    """
    document: Document = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if "choices" in field.metadata:
            opaque = is_opaque(field, value)
            document[field.name] = {"name": _name(field, value), **({} if opaque else document_of(value))}
        elif "section" in field.metadata:
            document[field.name] = document_of(value)
        elif value is not None:
            document[field.name] = written(value)
    return document


def _name(field: Field[Any], value: Any) -> str:
    """The name that `chosen` takes for the class of a choice's value, from any directory; `python:` where none does."""
    if is_opaque(field, value):
        return object_name(value)
    names = {settings: name for name, settings in field.metadata["choices"].items()}
    return names.get(type(value)) or place_of(type(value))


def leaves(settings: Any, prefix: str = "") -> Iterator[Leaf]:
    """All plain settings and choices below an instance, in the order of their declaration."""
    for field in fields(settings):
        value, path, text = getattr(settings, field.name), prefix + field.name, field.metadata.get("help", "")
        if "choices" in field.metadata:
            names = tuple(field.metadata["choices"])
            text = f"{text}: {', '.join(names)}"
            yield Leaf(path=path, kind="name", default=_name(field, value), help=text, choices=names)
            yield from () if is_opaque(field, value) else leaves(value, path + ".")
        elif "section" in field.metadata:
            yield from leaves(value, path + ".")
        else:
            kind = _kind(field)
            choices = ("true", "false") if kind == "bool" else ()
            yield Leaf(path=path, kind=kind, default=value, help=text, choices=choices)


# ---- layers ----


def nested(flags: Mapping[str, str]) -> Document:
    """The table of Words by dotted path: {"method": "mdpo", "method.steps": "8"} is {"method": {"name": ..., ...}}."""
    tables = []
    for path in sorted(flags, key=lambda path: path.count(".")):  # a choice's name before its settings
        value: Any = Word(flags[path])
        for key in reversed(path.split(".")):
            value = {key: value}
        tables.append(value)
    return reduce(merged, tables, {})


def merged(base: Document, changes: Document) -> Document:
    """The base with changes, changed keys last. A choice of another name brings none of the base's settings along.

    A name in place of a choice's table ("mdpo") is the table of that name alone.
    """
    result = dict(base)
    for key, value in changes.items():
        before = result.pop(key, None)
        if isinstance(value, dict) and isinstance(before, str):
            before = {"name": before}
        elif isinstance(value, str) and isinstance(before, dict) and "name" in before:
            value = {"name": value}
        if isinstance(value, dict) and isinstance(before, dict) and value.get("name") in (None, before.get("name")):
            value = merged(before, value)
        result[key] = value
    return result
