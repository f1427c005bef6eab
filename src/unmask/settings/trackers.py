"""Names of experiment trackers, and whether what they need is installed. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from unmask.errors import UserError
from unmask.validation import one_of

TRACKERS = ("wandb", "tensorboard", "trackio", "mlflow")
EXTRA = "unmask[track]"


def tracker_names(track: str) -> tuple[str, ...]:
    """The trackers in a text with commas between; none in an empty one.

    Raises UserError for an unknown name, or one that is given twice.
    """
    names = tuple(word.strip() for word in track.split(",")) if track else ()
    for name in names:
        one_of("track", name, TRACKERS)
    if len(set(names)) < len(names):
        raise UserError(f"track is {track!r}: give each tracker once")
    return names


def check_trackers(names: Iterable[str]) -> None:
    """Raise UserError where the package of a tracker is not installed, or accelerate, through which all are told."""
    for name in names:
        missing = [package for package in (name, "accelerate") if find_spec(package) is None]
        if missing:
            raise UserError(
                f"track names {name!r}, and {' and '.join(missing)} is not installed: pip install '{EXTRA}', or leave "
                f"{name} out"
            )
