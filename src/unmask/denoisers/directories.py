"""Where models lie on disk: embedded ones, and checkpoints in a run's directory by their names. Torch-free."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

EMBEDDED = "embedded:"  # begins the name of a model that ships with the package
ASSETS = Path(str(files("unmask.denoisers").joinpath("assets")))
_NAME = re.compile(r"step_([0-9]+)")


def local_directory(model: str) -> Path:
    """The directory of a local model: `embedded:NAME`, a checkpoint directory, or a run's newest checkpoint.

    It may not exist: callers say what is wrong.
    """
    if model.startswith(EMBEDDED):
        return ASSETS / model.removeprefix(EMBEDDED)
    directory = Path(model).expanduser()
    if (directory / "recipe.toml").is_file():
        return newest_checkpoint(directory / "checkpoints") or directory
    return directory


def checkpoints(folder: Path) -> list[Path]:
    """The directories in `folder` that are named as checkpoints of training are, by their numbers of steps."""
    found = (
        {step_of(path): path for path in folder.glob("step_*") if path.is_dir() and not path.is_symlink()}
        if folder.is_dir()
        else {}
    )
    return [found[step] for step in sorted(step for step in found if step is not None)]


def step_of(directory: Path) -> int | None:
    """The number of steps in the name of a checkpoint's directory; None for any other name."""
    found = _NAME.fullmatch(directory.name)
    return int(found[1]) if found and directory.name == checkpoint_name(int(found[1])) else None


def checkpoint_name(step: int) -> str:
    """Name of the directory of a checkpoint with so many steps."""
    return f"step_{step:06d}"


def newest_checkpoint(folder: Path) -> Path | None:
    """The directory of the checkpoint with the most steps in `folder`; None where there is none."""
    return next(reversed(checkpoints(folder)), None)
