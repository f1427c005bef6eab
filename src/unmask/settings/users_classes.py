"""What a class of the user's must have to stand among the package's own. Torch-free."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from unmask.errors import UserError
from unmask.validation import place_of


def check_complete(found: type[Any], known: Sequence[type[Any]], shown: str) -> None:
    """Raise UserError where `found` lacks, or has only as abstract, what all `known` classes define.

    `shown` begins the error: the setting and its value.
    """
    shared = set.intersection(*(set(dir(settings)) for settings in known)) - set(dir(found))
    abstract: frozenset[str] = vars(found).get("__abstractmethods__", frozenset())
    missing = sorted(abstract | {name for name in shared if not name.startswith("_") or name == "__call__"})
    if missing:
        raise UserError(f"{shown}, which lacks {', '.join(missing)}: {_mend(found, known, missing)}")


def _mend(found: type[Any], known: Sequence[type[Any]], missing: Sequence[str]) -> str:
    """What to define, or to subclass where `found` does not yet."""
    example, base = known[0], _common_base(known)
    if base is None or base not in found.__mro__:
        return f"{f'subclass {place_of(base)}, or ' if base else ''}define them as in {place_of(example)}"
    functions = [name for name in missing if inspect.isfunction(inspect.getattr_static(example, name))]
    variables = [name for name in missing if name not in functions]
    kinds = (("class variable", variables), ("function", functions))
    parts = [f"the {kind}{'s' * (len(names) > 1)} {' and '.join(names)}" for kind, names in kinds if names]
    return f"define {' and '.join(parts)}, as in {place_of(example)}"


def _common_base(known: Sequence[type[Any]]) -> type[Any] | None:
    """The nearest class that all `known` subclass, such as a protocol with defaults."""
    first, *others = (settings.__mro__[1:-1] for settings in known)
    shared = [base for base in first if all(base in bases for bases in others)]
    return next((base for base in shared if base.__module__.startswith("unmask.")), None)
