"""A run's directory: what is written before a run begins, and what one that goes on finds and takes over."""

from __future__ import annotations

import json
import shutil
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import tomli_w

from unmask.denoisers.digests import read_state
from unmask.denoisers.directories import LOCK, checkpoints, newest_checkpoint, partial
from unmask.denoisers.intact import read_json
from unmask.distributed import World
from unmask.errors import UserError
from unmask.report.durable import write_durably, writing
from unmask.report.metrics import check_length
from unmask.report.progress import message
from unmask.settings.inputs import input_digests, tell_changed_inputs
from unmask.settings.ownership import owned, owned_new
from unmask.settings.reader import document_of
from unmask.settings.recipe import Recipe
from unmask.settings.resume import changed_schedule, check_steps, locate_run, new_directory
from unmask.training.checkpoint import check_whole, set_aside

_APPEARS_SECONDS = 60.0  # in which a network file system that knew a path as missing shows that it is there now
_ABOUT = """This directory holds one training run of unmask.

recipe.toml         every setting of the run; `unmask train --recipe recipe.toml` repeats it
inputs.json         digests of your own files that it reads, if any
metrics.jsonl       one line a training step or evaluation (names as in TRL where TRL has one)
completions.jsonl   one prompt a step: its completions, their rewards, the step that revealed each token
before.json         held-out results of the base model, example by example; after.json: of the trained model
curve.png           reward and solve rates over the run
record/             groups of completions, step by step, and what trains on them: `unmask report` makes a page of them
ranks.jsonl         one line a start: how many ranks, on what devices, what each of them holds; versions and commit
trackers.json       names under which trackers know the run (`--track`)
checkpoints/        models in the Hugging Face layout, with what `unmask train --resume` needs
summary.json        solve rates before and after, with 95 % intervals
"""


def describe(directory: Path, recipe: Recipe) -> None:
    """Write what there is of a run before it begins; first recipe.toml, by which one that is killed here goes on."""
    write_durably(directory / "recipe.toml", tomli_w.dumps(document_of(recipe)))
    write_durably(directory / "README.txt", _ABOUT)
    if digests := input_digests(recipe):
        write_durably(directory / "inputs.json", json.dumps(digests, indent=1))


def check_seen(world: World, directory: Path) -> None:
    """Raise UserError, on all ranks, where one does not see a directory that all of them read or write."""
    found = world.everyone([_appears(directory), socket.gethostname(), str(directory.absolute())])
    for rank, (is_seen, host, path) in enumerate(found):
        if not is_seen:
            raise UserError(
                f"rank {rank} on {host} sees no {path}, which all ranks read or write: put it on a file system "
                "that all machines see"
            )


def _appears(directory: Path) -> bool:
    """Whether a directory is there, or comes within the time that a network file system takes to show it."""
    end_seconds = time.monotonic() + _APPEARS_SECONDS
    while not (is_seen := directory.is_dir()) and time.monotonic() < end_seconds:
        time.sleep(0.5)
    return is_seen


def look(recipe: Recipe, resume: str, output: str | None, ownership: ExitStack) -> dict[str, Any]:
    """What a run that goes on is found to be: its source, checkpoint and state, and the directory where it goes on.

    That directory is owned from here on.
    """
    source, checkpoint = locate_run(resume)
    ownership.enter_context(owned(source) if output is None else owned_new(output, ""))
    checkpoint = checkpoint or newest_checkpoint(source / "checkpoints")
    directory = source if output is None else new_directory(output, "")
    places = {"source": source, "directory": directory, "checkpoint": checkpoint}
    return {name: path and str(path) for name, path in places.items()} | {"state": _state(source, checkpoint, recipe)}


def _state(source: Path, checkpoint: Path | None, recipe: Recipe) -> dict[str, Any]:
    """The state of a run at a checkpoint, empty where there is none. Raises UserError where it cannot go on there."""
    state: dict[str, Any] = {}
    if checkpoint is not None:
        check_whole(checkpoint, recipe.train)
        state = read_state(checkpoint)
        _check_written(source, state)
    check_steps(source, state.get("step", 0), recipe.train.max_steps)
    if (source / "inputs.json").is_file():
        tell_changed_inputs(read_json(source / "inputs.json"))
    return state


def _check_written(source: Path, state: dict[str, Any]) -> None:
    """Raise UserError where a file that the run had written by its checkpoint, and needs to go on, is damaged."""
    read_json(source / "before.json")
    for log in ("metrics", "completions"):
        check_length(source / f"{log}.jsonl", state.get(f"{log}_bytes", 0))


def results_of(directory: Path, state: dict[str, Any]) -> dict[str, Any] | None:
    """summary.json of a run that was measured after the step of this state; None where that is not there and whole.

    An older one of as many steps may lie there, if training went on from an earlier checkpoint: then nothing stands
    in metrics.jsonl behind the step.
    """
    try:
        summary, after = (json.loads((directory / name).read_bytes()) for name in ("summary.json", "after.json"))
        measured = (directory / "metrics.jsonl").stat().st_size > state["metrics_bytes"]
    except (OSError, ValueError):
        return None
    whole = isinstance(summary, dict) and isinstance(after, dict)
    return summary if whole and measured and summary.get("steps") == state["step"] else None


def take_over(recipe: Recipe, source: Path, directory: Path, checkpoint: Path | None, step: int) -> None:
    """Make `directory` that of the run at `source` as it goes on after `step`; says where its rates will be others."""
    if step and (changed := changed_schedule(source, recipe.train)) is not None:
        message(changed)
    _copy_or_set_aside(source, directory, checkpoint)
    if checkpoint is None:
        describe(directory, recipe)
    else:
        write_durably(directory / "recipe.toml", tomli_w.dumps(document_of(recipe)))


def _copy_or_set_aside(source: Path, directory: Path, checkpoint: Path | None) -> None:
    """Make `directory` that of a run whose newest checkpoint is this one: a copy, or with later ones set aside."""
    if directory != source:
        kept = None if checkpoint is None else checkpoint.name
        others = [path.name for path in checkpoints(source / "checkpoints") if path.name != kept]
        ended = ("after.json", "summary.json", "curve.png", "trackers.json", "*.partial", "*.aside*", LOCK)
        copy = partial(directory / "copy")
        with writing(directory):
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns(*others, *ended))
        for path in sorted(copy.iterdir(), key=lambda path: path.name == "recipe.toml"):  # which makes it a run's
            path.rename(directory / path.name)
        copy.rmdir()
    elif checkpoint is not None:
        places = [path.name for path in checkpoints(source / "checkpoints")]
        for name in places[places.index(checkpoint.name) + 1 :]:
            set_aside(source / "checkpoints" / name)
