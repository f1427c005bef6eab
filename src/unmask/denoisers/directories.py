"""Where models lie on disk: embedded ones, checkpoints in a run's directory, new ones in empty ones. Torch-free."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from unmask.denoisers.intact import check_model_files
from unmask.errors import UserError
from unmask.validation.user_files import user_path

EMBEDDED = "embedded:"  # begins the name of a model that ships with the package
ASSETS = Path(str(files("unmask.denoisers").joinpath("assets")))
LOCK = ".lock"  # in the directory of a run: who owns it
# What else is written there, each whole or not at all; "copy" stands for all of a run that goes on elsewhere.
WRITTEN = (
    *("README.txt", "recipe.toml", "inputs.json", "before.json", "after.json", "summary.json", "curve.png", "copy"),
    *("trackers.json", "model", "checkpoints"),
)
_HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")
_NAME = re.compile(r"step_([0-9]+)")


def local_directory(model: str) -> Path:
    """The directory of a local model: `embedded:NAME`, a checkpoint directory, or a run's newest checkpoint.

    It may not exist: callers say what is wrong.
    """
    if model.startswith(EMBEDDED):
        return ASSETS / model.removeprefix(EMBEDDED)
    directory = user_path(model)
    if (directory / "recipe.toml").is_file() and not (directory / "config.json").is_file():
        return newest_checkpoint(directory / "checkpoints") or directory
    return directory


def embedded_names() -> list[str]:
    """Names of the models that ship with the package."""
    return sorted(path.name for path in ASSETS.iterdir() if (path / "config.json").exists())


def find_model(model: str) -> Path | None:
    """The directory of a model, as `local_directory` finds it; None where `model` may be org/name on the Hub.

    Raises UserError where it is neither, or a file in the directory is damaged.
    """
    directory = local_directory(model)
    if model.startswith(EMBEDDED):
        if not (directory / "config.json").exists():
            names = ", ".join(embedded_names())
            raise UserError(f"model {model!r} does not ship with unmask: the embedded models are {names}")
        return directory
    if not directory.exists() and _HUB_NAME.fullmatch(model):
        return None
    check_model(directory, model)
    return directory


def check_model(directory: Path, model: str) -> None:
    """Raise UserError unless the directory, of what the user calls `model`, holds a checkpoint with whole files."""
    if not directory.exists():
        raise UserError(
            f"model {model!r}: there is no such directory, and only names of the form org/name are looked up on the "
            f"Hub; give a checkpoint directory, org/name or {EMBEDDED}NAME"
        )
    if not (directory / "config.json").exists():
        raise UserError(f"model {model!r} has no config.json: give a checkpoint directory or {EMBEDDED}NAME")
    if (directory / "adapter_config.json").exists():
        raise UserError(
            f"model {model!r} holds adapters of peft: merge them into their base, and give the merged model"
        )
    check_model_files(directory)


def check_new(directory: Path, mend: str = "") -> None:
    """Raise UserError where a directory to write holds something; `mend`: what else to do than to give another."""
    if holds_something(directory):
        raise UserError(f"output {str(directory)!r} is not empty: give a new directory{mend}")


def holds_something(path: Path) -> bool:
    """Whether there is a file, or a directory with more in it than a command that was killed leaves of its start."""
    if not path.is_dir():
        return path.exists()
    passing = {LOCK, *(left.name for left in leftovers(path))}
    return any(entry.name not in passing for entry in path.iterdir())


def leftovers(directory: Path) -> list[Path]:
    """What was being written in a directory, and among checkpoints in it, when the command that wrote was killed."""
    names = map(partial, (directory / name for name in WRITTEN))
    return [path for path in names if path.exists()] + sorted(directory.glob("checkpoints/.step_*.partial"))


def partial(path: Path) -> Path:
    """Where a file or directory is written, to be renamed to `path` when it is whole."""
    return path.with_name(f".{path.name}.partial")


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
