"""Directories of runs: new ones, what `--resume` names, and which settings may be others then. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from shlex import quote
from typing import Any

from unmask.denoisers.directories import LOCK, check_new, checkpoints, holds_something, newest_checkpoint, step_of
from unmask.errors import UserError
from unmask.settings.reader import build, flag_of, leaves
from unmask.settings.recipe import TrainSettings
from unmask.settings.recipe_files import read_recipe
from unmask.validation.user_files import user_path

# Everything else decides what the run is: with another value it would be neither the old run nor a new one.
MAY_CHANGE = (
    "train.max_steps",
    "train.threads",
    "track",
    "train.shard",
    "train.nodes_replicate",
    "train.eval_steps",
    "train.save_steps",
    "train.save_total_limit",
    *("max_steps", "threads", "save_steps"),  # of pretrain
    "report.every",
    "report.prompts",
    "reward.timeout_seconds",
    "reward.retries",
    "reward.on_fault",
)


def new_directory(output: str | None, name: str) -> Path:
    """`output`, or runs/NAME-NNN with the first free number. Raises UserError where `output` holds something.

    Where a command is, or was, at work there, that is told before what lies there: by those who own it next.
    """
    if output is not None:
        directory = user_path(output)
        if not (directory / LOCK).is_file():
            check_unused(directory)
        return directory
    return next(free_directories(name))


def check_unused(directory: Path) -> None:
    """Raise UserError where a directory of a new run holds something; it says how to go on with the run that does."""
    check_new(directory, _resume_hint(directory))


def free_directories(name: str) -> Iterator[Path]:
    """runs/NAME-NNN, those that hold nothing, by their numbers."""
    places = (Path("runs") / f"{name}-{number:03d}" for number in count(1))
    return (directory for directory in places if not holds_something(directory))


def _resume_hint(directory: Path) -> str:
    """The end of an error line about a directory in use: how to go on with its run, where there is one."""
    if not (directory / "recipe.toml").is_file():
        return ""
    finished = any((directory / name).is_file() for name in ("summary.json", "config.json"))  # of pretrain: its model
    if newest_checkpoint(directory / "checkpoints") is not None:
        what = "extend its run by --train.max-steps" if finished else "continue its run"
    elif finished:
        return ""  # to start it again would take its results away
    else:
        what = "start its run again: it has no checkpoint"
    return f", or --resume {quote(str(directory))} to {what}"


def how_to_go_on(command: str, directory: Path) -> str:
    """What to say of a run that is interrupted: the `unmask` command line that goes on with it, or starts it again."""
    newest = newest_checkpoint(directory / "checkpoints")
    line = f"`unmask {command} --resume {quote(str(directory))}`"
    if newest is None:
        return f"{line} starts it again, for there is no checkpoint yet"
    return f"{line} goes on from its newest checkpoint, {newest.name}"


def locate_run(resume: str) -> tuple[Path, Path | None]:
    """Directory of the run that `--resume` names, and its checkpoint where it names one (None: the newest).

    Raises UserError where there is no run, or its recipe.toml ends within a line.
    """
    path = user_path(resume)
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


def check_steps(source: Path, step: int, steps: int) -> None:
    """Raise UserError where a run whose checkpoint has `step` steps is to have fewer than those."""
    if steps < step:
        raise UserError(
            f"train.max_steps is {steps}, and the checkpoint has {step} steps: give more{_earlier_hint(source, steps)}"
        )


def _earlier_hint(directory: Path, most_steps: int) -> str:
    """The end of an error line: the newest checkpoint of a run with at most so many steps, where there is one."""
    earlier = [path for path in checkpoints(directory / "checkpoints") if (step_of(path) or 0) <= most_steps]
    return f", or --resume {quote(str(earlier[-1]))}" if earlier else ""


def check_resumable(resume: str, output: str | None, steps: int) -> None:
    """Raise UserError where the run cannot go on to so many steps, or not in `output`, as far as names tell."""
    source, checkpoint = locate_run(resume)
    checkpoint = checkpoint or newest_checkpoint(source / "checkpoints")
    if output is not None:
        new_directory(output, "")
    if checkpoint is not None:
        check_steps(source, step_of(checkpoint) or 0, steps)


def changed_schedule(source: Path, train: TrainSettings) -> str | None:
    """What to say where a run goes on with other learning rates than those of its recipe; None where all are equal."""
    before = build(TrainSettings, read_recipe(str(source / "recipe.toml")).get("train", {}), "train.")
    both = range(min(before.max_steps, train.max_steps))
    if all(before.learning_rate_at(step) == train.learning_rate_at(step) for step in both):
        return None
    return (
        f"the learning rate now decays over {train.max_steps} steps in place of {before.max_steps}: steps from here on "
        f"use the {'longer' if train.max_steps > before.max_steps else 'shorter'} schedule"
    )


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
