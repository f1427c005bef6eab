"""The overlay of sizes: what a rehearsal changes in a recipe, and nothing else."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from rehearsal.benchmarks import task_sizes
from unmask.settings.reader import build
from unmask.settings.recipe import Recipe
from unmask.settings.recipe_files import read_recipe

_OVERLAY = Path(__file__).with_name("overlay.toml")
Document = dict[str, Any]


def rehearsal_document(recipe: str, stand_in: Path, data: Path, *, table: str = "sizes") -> Document:
    """The recipe with the overlay on it, for a stand-in and the word problems in `data`.

    `table`: "sizes", or "improve" for a run that learns.
    """
    published = build(Recipe, read_recipe(recipe))
    overlay = tomllib.loads(_OVERLAY.read_text())
    task = published.task.name
    document: Document = {"base": recipe, "model": str(stand_in)}
    adapters = "adapters" if published.train.lora_rank and table == "sizes" else ""
    for name in dict.fromkeys(("sizes", adapters, stand_in.name, published.method.name, table)):
        _merge(document, overlay.get(name, {}))
    document["task"] = task_sizes(task, data) | {"name": task}
    document["train"]["num_iterations"] = min(published.train.num_iterations, document["train"]["num_iterations"])
    return document


def write_rehearsal(recipe: str, stand_in: Path, data: Path, path: Path, *, table: str = "sizes") -> Recipe:
    """Write `rehearsal_document` to `path`, and read it back."""
    document = rehearsal_document(recipe, stand_in, data, table=table)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tomli_w.dumps(document))
    return build(Recipe, read_recipe(str(path)))


def _merge(document: Document, changes: Document) -> None:
    for key, value in changes.items():
        if isinstance(value, dict):
            _merge(document.setdefault(key, {}), value)
        else:
            document[key] = value
