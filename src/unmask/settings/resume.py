"""What `--resume` names, and which settings of a run may be others when it goes on. Torch-free."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Any

from unmask.errors import UserError
from unmask.settings.reader import flag_of, leaves

# Everything else decides what the run is: with another value it would be neither the old run nor a new one.
MAY_CHANGE = (
    "train.steps",
    "train.threads",
    "train.evaluate_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
)


def locate_run(resume: str) -> tuple[Path, Path | None]:
    """Directory of the run that `--resume` names, and its checkpoint where it names one (None: the newest).

    Raises UserError where there is no run, or its recipe.toml ends within a line.
    """
    path = Path(resume).expanduser()
    run, checkpoint = path, None
    if not (path / "recipe.toml").is_file() and path.is_dir() and path.absolute().parent.name == "checkpoints":
        run, checkpoint = path.absolute().parent.parent, path
    recipe = run / "recipe.toml"
    if not recipe.is_file():
        raise UserError(
            f"{resume!r} has no recipe.toml: give the directory of a run, or of one of its checkpoints, to --resume"
        )
    _refuse_cut_line(recipe)
    return run, checkpoint


def _refuse_cut_line(recipe: Path) -> None:
    """Raise UserError where a stored recipe ends within a line: the number that is left may be another one."""
    try:
        whole = recipe.read_bytes().endswith(b"\n")
    except OSError as error:
        raise UserError(f"{recipe} cannot be read ({error.strerror}): restore the file") from error
    if not whole:
        raise UserError(f"{recipe} ends within a line: restore the file, or end its last line if it is whole")


def check_unchanged(stored: Any, asked: Any, recipe: str) -> None:
    """Raise UserError where settings differ from those of the run, the file `recipe`, in others than `MAY_CHANGE`."""
    before, after = ({leaf.path: leaf.default for leaf in leaves(settings)} for settings in (stored, asked))
    for path in after:
        if path not in MAY_CHANGE and (path not in before or before[path] != after[path]):
            was = before.get(path, "not set")
            raise UserError(
                f"{flag_of(path)} is {after[path]!r}, and the run that goes on was started with {was!r}: "
                f"leave it out, or start a new run with --recipe {quote(recipe)}"
            )
