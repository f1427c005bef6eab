"""Which table a command starts from where no recipe is named, and settings that must agree. Torch-free."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from unmask.denoisers.directories import ASSETS, EMBEDDED, local_directory
from unmask.errors import UserError
from unmask.settings.idle import without_idle
from unmask.settings.objects import PYTHON
from unmask.settings.reader import Document, Word, chosen, flag_of, leaves, merged
from unmask.tasks import TASKS
from unmask.validation import other_names
from unmask.validation.user_files import refuse_special

NAMING = ("model", "task", "method")  # with one of these a command no longer means its default recipe

# Settings that say the same thing: where both are given, they must agree.
_SAME = (
    ("rollout.max_new_tokens", "sampled", "task.max_new_tokens", "of the data's completions"),
    ("lengths", "sampled", "task.max_new_tokens", "of the data's completions"),
)


def names_the_job(flags: Mapping[str, Any]) -> bool:
    """Whether flags name model, task or method, not only settings of the default ones."""
    return any(_name_of(flags.get(name)) is not None for name in NAMING)


def with_model_and_task(document: Document, flags: Document, *, needs_model: bool) -> Document:
    """The document with the task that its or the flags' model brings, or the embedded model of its or the flags' task.

    A model brings task and chat settings of the recipe that made it, or else the task of its config.json: where no task
    is named, or flags name that one. Raises UserError where the command needs a model and no embedded one has the task,
    or a class that the user's extends.
    """
    whole = merged(document, flags)
    model, task = whole.get("model"), _name_of(whole.get("task"))
    if model is not None and _name_of(document.get("task")) is None:
        brought = tables_of_model(str(model))
        return merged(brought if task in (None, _name_of(brought.get("task"))) else {}, document)
    if model is None and task is not None and needs_model:
        model, table = _model_of_task(task)
        return merged({"model": model, "task": table}, document)
    return document


def task_is_missing(document: Document) -> bool:
    """Whether a model is named and no task, so that the command's own is taken."""
    return document.get("model") is not None and _name_of(document.get("task")) is None


def _name_of(table: Any) -> str | None:
    """The name of a choice, given as text or in a table; None where it is not given."""
    name = table.get("name") if isinstance(table, Mapping) else table
    return name if isinstance(name, str) else None


def tables_of_model(model: str) -> Document:
    """The tables `task` and `chat` of the recipe that made a model, else the `task` of its config.json; where there is.

    The recipe lies beside the model (of `unmask pretrain` and `export`), or in the directory of the run. Shipped tasks
    alone: the files of a model are data, and a name such as FILE.py:CLASS among them would be code.
    """
    try:
        directory = local_directory(model)
    except UserError:
        return {}  # no name of a directory, as loading it says
    places = [directory, *([directory.parent.parent] if directory.parent.name == "checkpoints" else [])]
    for place in places:
        recipe = _read(place / "recipe.toml", tomllib.loads)
        if _table(recipe, "task"):
            return (
                {name: table for name in ("task", "chat") if (table := _table(recipe, name))}
                if _is_shipped(recipe)
                else {}
            )
    config = _read(directory / "config.json", json.loads)
    return {"task": _table(config, "task")} if _is_shipped(config) else {}


def _read(path: Path, loads: Callable[[str], Any]) -> Any:
    """What a file holds; nothing where it cannot be read: loading the model says what is wrong."""
    try:
        refuse_special(path)
        return loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}


def _table(document: Any, name: str) -> Document:
    table = document.get(name) if isinstance(document, dict) else None
    return table if isinstance(table, dict) else {}


def _is_shipped(document: Any) -> bool:
    """Whether the task is one of the package's own, and none of its settings an object of another process."""
    task = _table(document, "task")
    objects = (isinstance(value, str) and value.startswith(PYTHON) for value in task.values())
    return _name_of(task) in TASKS and not any(objects)


def _model_of_task(task: str) -> tuple[str, Document]:
    """The embedded model whose own task has this name, or is subclassed by it, and the table of the task with the name.

    Raises UserError where there is none, or the name is unknown.
    """
    settings = chosen(TASKS, task, flag_of("task") if isinstance(task, Word) else "task.name")
    for directory in sorted(ASSETS.iterdir()):
        model = EMBEDDED + directory.name
        brought = tables_of_model(model).get("task")
        if brought is not None and issubclass(settings, TASKS[brought["name"]]):
            return model, {**brought, "name": task}
    raise UserError(
        f"no embedded model knows task {task!r}: give --model, a checkpoint directory or org/name on the Hub"
    )


def check_one_name(settings: Any, layer: Mapping[str, Any]) -> None:
    """Raise UserError where a layer, values by dotted paths, has two for one setting, under two of its names.

    Of two layers the upper one holds, whichever name it uses.
    """
    for other, path in other_names(settings).items():
        if path in layer and layer.get(other, layer[path]) != layer[path]:
            raise UserError(
                f"{other} {layer[other]} contradicts {path} {layer[path]}, its name of now: give that one alone"
            )


def check_agreement(settings: Any, flags: Collection[str]) -> None:
    """Raise UserError where two settings that say the same thing differ, each a flag or not at its default.

    `flags`: paths of the settings that are given as flags.
    """
    values = {leaf.path: leaf.default for leaf in leaves(settings)}
    for one, of_one, other, of_other in _SAME:
        if not values.get(one) or other not in values or str(values[one]) == str(values[other]):
            continue
        defaults = {leaf.path: leaf.default for leaf in leaves(without_idle(settings, (one, other)))}
        if all(path in flags or values[path] != defaults[path] for path in (one, other)):
            shown = [f"{flag_of(path) if path in flags else path} {values[path]}" for path in (one, other)]
            raise UserError(
                f"{shown[0]} ({of_one}) contradicts {shown[1]} ({of_other}): give both the same value, or one of them "
                "alone"
            )
