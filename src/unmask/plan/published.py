"""Models that `unmask plan` knows without their files: shapes of published checkpoints. Torch-free."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

from unmask.denoisers.directories import EMBEDDED, find_model, local_directory
from unmask.denoisers.intact import read_json
from unmask.errors import UserError
from unmask.validation import did_you_mean


@cache
def published_shapes() -> dict[str, dict[str, Any]]:
    """config.json of published checkpoints by their names on the Hub, as far as it decides the network's shape."""
    tables = tomllib.loads(files("unmask").joinpath("plan/published.toml").read_text())
    return {name: tables[table.get("same_as", name)] for name, table in tables.items()}


def model_config(model: str) -> dict[str, Any]:
    """config.json of a model on disk, else of a published one. Raises UserError where it is neither."""
    shapes = published_shapes()
    on_disk = model.startswith(EMBEDDED) or (local_directory(model) / "config.json").is_file()
    directory = find_model(model) if on_disk else None
    if directory is not None:
        return read_json(directory / "config.json")
    if model in shapes:
        return shapes[model]
    raise UserError(f"model {model!r}: there is no such checkpoint directory{did_you_mean(model, list(shapes))}")
