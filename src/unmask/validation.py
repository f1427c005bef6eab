"""Checks of settings: each raises a UserError that names the value and the mend."""

from __future__ import annotations

import difflib

from unmask.errors import UserError


def one_of(what: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises UserError unless `value` names one of the `allowed` pieces."""
    if value not in allowed:
        raise UserError(f"{what} {value!r} is unknown: give one of {', '.join(allowed)}")


def positive(**values: float) -> None:
    """Raise UserError unless all are."""
    for name, value in values.items():
        if value <= 0:
            raise UserError(f"{name} is {value}: give a positive number")


def check_four_bit(section: str, four_bit: bool, lora_rank: int) -> None:
    """Raise UserError where a frozen base would leave nothing to train."""
    if four_bit and not lora_rank:
        raise UserError(
            f"{section}four_bit freezes the base, and nothing is left to train: set {section}lora_rank, such as 16"
        )


def check_range(name: str, value: int, low: int, high: int) -> None:
    """Raise UserError unless low <= value <= high."""
    if not low <= value <= high:
        raise UserError(f"{name} is {value}; choose an integer from {low} to {high}")


def did_you_mean(word: str, known: list[str]) -> str:
    """The end of an error line about an unknown word: the nearest known one, or all of them."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f": perhaps you meant {close[0]!r}" if close else f": give one of {', '.join(sorted(known))}"
