"""Named pieces in settings."""

from __future__ import annotations

from unmask.errors import UserError


def one_of(what: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises UserError unless `value` names one of the `allowed` pieces."""
    if value not in allowed:
        raise UserError(f"{what} {value!r} is unknown: give one of {', '.join(allowed)}")
