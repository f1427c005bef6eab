"""Which table a command starts from where no recipe is named, and settings that must agree. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from unmask.denoisers.directories import local_directory
from unmask.errors import UserError
from unmask.settings.reader import Document, merged, read_recipe

NAMING = ("model", "task", "method")  # with one of these a command no longer means its default recipe


def starting_document(
    recipe: str | None, default_recipe: str | None, flags: Mapping[str, Any], known: Collection[str]
) -> Document:
    """The recipe's table; without a recipe the default recipe's, or none where flags name model, task or method.

    A model named without a recipe brings its task, where its config.json has one. `known`: settings of the command.
    """
    if recipe is not None:
        return read_recipe(recipe)
    if default_recipe is not None and not names_the_job(flags):
        return read_recipe(default_recipe)
    model = flags.get("model")
    task = task_of_model(str(model)) if model is not None and "task" in known else None
    return {} if task is None else {"task": task}


def names_the_job(flags: Mapping[str, Any]) -> bool:
    """Whether flags name model, task or method, not only settings of the default ones."""
    return any(isinstance(flags.get(name), str) or "name" in (flags.get(name) or ()) for name in NAMING)


def task_of_model(model: str) -> Document | None:
    """The `task` table of the config.json of an embedded model or a directory; None where there is none."""
    try:
        config = json.loads((local_directory(model) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None  # loading it says what is wrong
    task = config.get("task") if isinstance(config, dict) else None
    return task if isinstance(task, dict) and "name" in task else None


def check_lengths_agree(document: Document, flags: Document) -> None:
    """Raise UserError where rollout.max_new_tokens and task.max_new_tokens differ and one of them is a flag."""
    tables = ("rollout", "task")
    lengths = [_length(merged(document, flags).get(table)) for table in tables]
    given = [_length(flags.get(table)) for table in tables]
    if any(given) and all(lengths) and lengths[0] != lengths[1]:
        raise UserError(
            f"--rollout.max-new-tokens {lengths[0]} (sampled) contradicts --task.max-new-tokens {lengths[1]} (of the "
            "data's completions): give both the same value, or one of them alone"
        )


def _length(table: Any) -> str | None:
    value = table.get("max_new_tokens") if isinstance(table, Mapping) else None
    return None if value is None else str(value)
