"""SHA-256 of the files of a checkpoint, in its state.json: what has changed since it was written is noticed."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from unmask.denoisers.intact import read_json
from unmask.errors import UserError

STATE = "state.json"


def read_state(directory: Path) -> dict[str, Any]:
    """state.json of a checkpoint: `step`, positions in the log files, the monitor's state."""
    return read_json(directory / STATE)


def with_digests(directory: Path, state: dict[str, Any]) -> dict[str, Any]:
    """The run state with the SHA-256 of every file in the directory, and of the state itself, by their names."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    digests = {path.relative_to(directory).as_posix(): sha256_of(path) for path in paths}
    return state | {"sha256": digests | {STATE: _digest_of_state(state)}}


def check_digests(directory: Path, reads: Callable[[str], bool]) -> None:
    """Raise UserError where a file of a checkpoint is not what was written; earlier versions wrote no digests.

    `reads`: whether a file, by its name, is looked at.
    """
    state = read_state(directory)
    for name, digest in state.pop("sha256", {}).items():
        if not reads(name):
            continue
        try:
            found = _digest_of_state(state) if name == STATE else sha256_of(directory / name)
        except OSError as error:
            raise UserError(f"{directory / name} cannot be read ({error.strerror}): restore the file") from None
        if found != digest:
            raise UserError(f"{directory / name} is not what was written (its SHA-256 differs): restore the file")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in parts."""
    with path.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()


def _digest_of_state(state: dict[str, Any]) -> str:
    return sha256(json.dumps(state).encode()).hexdigest()
