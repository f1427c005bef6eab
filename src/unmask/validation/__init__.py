"""How settings are declared, checked and found by name. Torch-free; errors name the value and the mend."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from reprlib import repr as short_repr
from types import ModuleType
from typing import Any, TypeVar

from unmask.errors import UserError
from unmask.validation.user_files import user_path
from unmask.validation.user_modules import PREFIX, current_directory, import_file

Value = TypeVar("Value")


LARGEST_COUNT = 10_000_000  # of steps, examples, tokens: what is larger does not end
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Range:
    """The numbers that a setting takes: low <= value <= high, above < value and value < below where these are given."""

    low: float
    high: float
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        inside = self.low <= value <= self.high  # NaN is in none
        return inside and (self.above is None or value > self.above) and (self.below is None or value < self.below)

    def __str__(self) -> str:
        start = self.low if self.above is None else f"above {self.above}"
        return f"from {start} to {self.high}" if self.below is None else f"from {start} to below {self.below}"


def setting(
    default: Value,
    help: str,
    *,
    was: str | None = None,
    also: str | None = None,
    low: float | None = None,
    high: float = LARGEST_COUNT,
    above: float | None = None,
    below: float | None = None,
    names_files: bool = False,
    names_data: bool = False,
    idle: Callable[[Any], str | None] | None = None,
) -> Value:
    """A dataclass field of a settings class: its default and its help text.

    `was` is its name in the version before, which is still read, with a notice; `also` another word for it, of another
    library's, which is read as it is. A number lies in the range of `low`
    (unset: 0, or none where the default is negative), `high`, `above` and `below`; texts and booleans have no range.
    Tables are read with it, and `check_ranges` refuses what is made in Python.
    `names_files`: its text names files or directories of the user's, which a run stores as absolute paths.
    `names_data`: likewise, and it is one file of data, or org/name on the Hub; a file that is missing is refused early.
    `idle`: given the settings object, why nothing reads this setting (a setting beside it and its value), None where it
    is read; a value that would not be read is refused.

        beta: float = setting(0.9, "AdamW's first decay", below=1)
        alpha: int = setting(64, "scale of the adapters, times their rank", idle=where("rank", 0))
    """
    if low is None:
        low = -LARGEST_COUNT if isinstance(default, int | float) and default < 0 else 0
    allowed = Range(low=low, high=high, above=above, below=below)
    metadata = {"help": help, "was": was, "also": also, "range": allowed, "idle": idle} | {
        "names_files": names_files or names_data,
        "names_data": names_data,
    }
    declared: Value = field(default=default, metadata=metadata)
    return declared


def where(name: str, value: Any) -> Callable[[Any], str | None]:
    """For `setting(idle=)`: the setting is not read where the one beside it, by its name, has this value."""
    shown = "unset" if value is None else value
    return lambda settings: f"{name} is {shown}" if getattr(settings, name) == value else None


def choice(choices: Mapping[str, type[Any]], default: type[Value], help: str) -> Value:
    """A dataclass field that holds an instance of one of `choices` (name: settings class), or of a class of the user's.

    In TOML it is a table with the class's name and settings, `method = { name = "mdpo", beta = 0.1 }`.
    """
    declared: Value = field(default_factory=default, metadata={"help": help, "choices": choices})
    return declared


def section(settings: type[Value]) -> Value:
    """A dataclass field that holds an instance of another settings class; in TOML a table of the field's name."""
    declared: Value = field(default_factory=settings, metadata={"section": settings})
    return declared


def other_names(settings: Any, prefix: str = "") -> dict[str, str]:
    """Today's path of each setting below an instance that has an old or another name, by the path with that name."""
    names: dict[str, str] = {}
    for each in fields(settings) if is_dataclass(settings) else ():
        path = prefix + each.name
        if {"choices", "section"} & set(each.metadata):
            names |= other_names(getattr(settings, each.name), path + ".")
        names |= {prefix + each.metadata[key]: path for key in ("was", "also") if each.metadata.get(key)}
    return names


def one_of(what: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise UserError unless `value` is one of the `allowed`; `what` is the setting's path."""
    if value not in allowed:
        raise UserError(f"{what} {value!r} is unknown: give one of {', '.join(allowed)}")


def check_ranges(settings: Any, section: str = "") -> None:
    """Raise UserError where a number is out of the range that its setting declares; `section` begins the paths."""
    for declared in fields(settings):
        value = getattr(settings, declared.name)
        if "range" in declared.metadata and value is not None:
            check_number(section + declared.name, value, declared.metadata["range"])


def check_number(what: str, value: Any, allowed: Range) -> None:
    """Raise UserError where a number is not among the `allowed`; texts and booleans are. `what` names the setting."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value not in allowed:
        kind = "an integer" if isinstance(value, int) else "a number"
        raise UserError(f"{what} is {short_repr(value)}: give {kind} {allowed}")


def check_four_bit_has_adapters(section: str, four_bit: bool, lora_rank: int) -> None:
    """Raise UserError for a base in 4 bits, which is frozen, without adapters to train; `section` begins the paths."""
    if four_bit and not lora_rank:
        raise UserError(
            f"{section}four_bit freezes the base, and nothing is left to train: set {section}lora_rank, such as 16"
        )


def check_range(name: str, value: int, low: int, high: int) -> None:
    """Raise UserError unless low <= value <= high."""
    if not low <= value <= high:
        raise UserError(f"{name} is {value}; choose an integer from {low} to {high}")


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of an error line about an unknown word: the nearest known one, or all; `prefix` is put before each."""
    known = sorted(known)
    return near(word, known, prefix) or (
        f": give one of {', '.join(prefix + name for name in known)}" if known else ", and there is none to give here"
    )


def near(word: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of an error line about an unknown word: the nearest known one, empty where none is near."""
    close = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f": perhaps you meant {prefix + close[0]!r}" if close else ""


def load_named(spec: str, what: str, forms: str = "FILE.py:NAME or MODULE:NAME", kind: type = object) -> Any:
    """The user's own function or class that `spec`, FILE.py:NAME or MODULE:NAME, names.

    `what` and `forms` are for errors, in which the module's own names of the `kind` are proposed. Raises UserError for
    what is not there or cannot be called.
    """
    where, _, name = spec.rpartition(":")
    if not where or not name:
        raise UserError(f"{what} {spec!r} is unknown: give {forms}")
    module = _import_file(where, what) if where.endswith(".py") else _import_module(where, what, forms)
    found = _own_names(module, kind)
    if not hasattr(module, name):
        raise UserError(f"{where!r} has no {what} {name!r}{did_you_mean(name, found)}")
    named = getattr(module, name)
    if not callable(named):
        raise UserError(f"{spec!r} is a {type(named).__name__} and cannot be called{did_you_mean(name, found)}")
    return named


def _own_names(module: ModuleType, kind: type) -> list[str]:
    """Names of the functions and classes of a `kind` that a module defines, or lists in `__all__`: no mere imports."""
    listed = vars(module).get("__all__", ())
    callables = {key: value for key, value in vars(module).items() if isinstance(value, kind) and callable(value)}
    return [
        key
        for key, value in callables.items()
        if key in listed or (not key.startswith("_") and getattr(value, "__module__", None) == module.__name__)
    ]


def place_of(named: type[Any]) -> str:
    """The spec, FILE.py:NAME with an absolute path or MODULE:NAME, by which `load_named` finds a class."""
    module = named.__module__
    if module == "__main__" or module.startswith(PREFIX):
        module = getattr(sys.modules[module], "__file__", module)  # a notebook has no file
    return f"{module}:{named.__qualname__}"


def _import_file(where: str, what: str) -> ModuleType:
    path = user_path(where)
    if not path.is_file():
        raise UserError(f"{where!r} is not a file: give the path of a Python file with a {what}")
    with _noted(where, what), current_directory(first=False):
        return import_file(path)


def _import_module(where: str, what: str, forms: str) -> ModuleType:
    if not all(part.isidentifier() for part in where.split(".")):
        raise UserError(f"{where!r} is neither a module nor a Python file: give {forms}")
    try:
        with _noted(where, what), current_directory(first=True):
            return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{where}.".startswith(f"{error.name}."):
            raise  # the module is there, and one that it imports is not
        raise UserError(
            f"there is no module {where!r}: install it, name its directory in PYTHONPATH, or give FILE.py:NAME"
        ) from error


@contextmanager
def _noted(where: str, what: str) -> Iterator[None]:
    try:
        yield
    except SystemExit as error:
        raise UserError(
            f"{where!r} calls sys.exit while a {what} is imported from it: put what is a program of its own under "
            'if __name__ == "__main__"'
        ) from error
    except Exception as error:
        error.add_note(f"raised while importing a {what} from {where!r}")
        raise
