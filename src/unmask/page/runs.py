"""What a page is told of runs, read from their directories: plain values for JSON, and packed records by name.

No code of the user's is imported, and torch neither: a page of a run from elsewhere runs nothing of it.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from unmask.errors import UserError
from unmask.methods import METHODS
from unmask.page.comparison import comparison
from unmask.report.metrics import read_metrics
from unmask.report.record import Group, read_groups, recorded
from unmask.settings.idle import flat
from unmask.settings.reader import Document, build, document_of, leaves
from unmask.settings.recipe import Recipe
from unmask.settings.recipe_files import read_recipe

_DIGITS = 6  # significant ones of a figure
_ALIGNMENT_BYTES = 8


def page_of(runs: Sequence[Path]) -> dict[str, Any]:
    """Values of a page: of one run all, of several what compares them. Raises UserError where there is no run."""
    if not runs:
        raise UserError("name the directory of a run, or of several to compare them")
    described = [run_of(run) for run in runs]
    names = distinct_names(runs)
    for run, name in zip(described, names, strict=True):
        run["name"] = name
    compared = comparison(described, [_held_out(run) for run in runs]) if len(runs) > 1 else None
    return {"runs": described, "comparison": compared}


def distinct_names(runs: Sequence[Path]) -> list[str]:
    """Names of the runs' directories, whole paths where two have the same."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def run_of(run: Path) -> dict[str, Any]:
    """Values of one run."""
    recipe = _recipe(run)
    rows = read_metrics(run / "metrics.jsonl")
    settings = _values(recipe)
    return {
        "method": settings.get("method", ""),
        "task": settings.get("task", ""),
        "model": settings.get("model", ""),
        "steps": settings.get("train.max_steps", 0),
        "seed": settings.get("train.seed", 0),
        "training": _table([row for row in rows if "reward" in row or "loss" in row]),
        "evaluations": _table([row for row in rows if any(name.startswith("eval/") for name in row)]),
        "warnings": [{"step": row["step"], "text": row["warning"]} for row in rows if "warning" in row],
        "summary": _json(run / "summary.json", {}),
        "settings": _settings(recipe, settings),
        "paper": METHODS[settings["method"]].paper if settings.get("method") in METHODS else "",
        "starts": read_metrics(run / "ranks.jsonl") if (run / "ranks.jsonl").is_file() else [],
        "command": f"unmask train --recipe {quote(str(run / 'recipe.toml'))}",
        "record": {kind: list(recorded(run, kind)) for kind in ("step", "evaluation")},
    }


def blobs_of(run: Path) -> dict[str, bytes]:
    """All records of a run, packed, by "KIND_STEP"."""
    return {name: blob() for name, blob in blob_makers(run).items()}


def blob_makers(run: Path) -> dict[str, Callable[[], bytes]]:
    """For each record of a run, by "KIND_STEP", what packs it."""
    return {
        f"{kind}_{step}": partial(_packed_file, path)
        for kind in ("step", "evaluation")
        for step, path in recorded(run, kind).items()
    }


def _packed_file(path: Path) -> bytes:
    return packed(read_groups(path))


def packed(groups: Sequence[Group]) -> bytes:
    """Groups, zlib-compressed: length of a JSON header (4 bytes), header, then arrays where it says they are."""
    body, heads = bytearray(), []
    for group in groups:
        places = {}
        for name, array in group.arrays.items():
            body.extend(b"\0" * (-len(body) % _ALIGNMENT_BYTES))
            places[name] = [array.dtype.name, list(array.shape), len(body)]
            body.extend(np.ascontiguousarray(array).tobytes())
        heads.append({"about": group.about, "arrays": places})
    header = json.dumps(heads).encode()
    header += b" " * (-(len(header) + 4) % _ALIGNMENT_BYTES)
    return zlib.compress(len(header).to_bytes(4, "little") + header + bytes(body), level=6)


def _recipe(run: Path) -> Document:
    path = run / "recipe.toml"
    if not path.is_file():
        raise UserError(f"{str(run)!r} has no recipe.toml: name the directory of a run of unmask train")
    recipe = read_recipe(str(path))
    if "batch" in recipe:  # which a run of unmask train has in its tables alone
        raise UserError(f"{str(run)!r} is of unmask pretrain, and pages are of unmask train: name such a run")
    return recipe


def _table(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """Columns of rows, by name: `step`, and every figure; None where a row has none that is finite."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [_figure(row.get(name)) for row in rows] for name in names}


def _figure(value: Any) -> float | None:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.{_DIGITS}g}")


def _json(path: Path, missing: Any) -> Any:
    try:
        return json.loads(path.read_text()) if path.is_file() else missing
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): restore the file, or delete it") from error


def _held_out(run: Path) -> dict[str, list[float]]:
    """Held-out results of the trained model, example by example; none while it trains."""
    found: dict[str, list[float]] = _json(run / "after.json", {})
    return {name: values for name, values in found.items() if name.endswith(("/solved", "/preferred")) and values}


def _settings(recipe: Document, values: Document) -> list[dict[str, Any]]:
    """Each setting of a run with its default, which in the method's tables is the paper's, where that is known."""
    known = {leaf.path: leaf for leaf in leaves(build(Recipe, _names(recipe)))} if _ships(recipe) else {}
    return [
        {
            "path": path,
            "value": value,
            "default": known[path].default if path in known else None,
            "help": known[path].help if path in known else "",
            "differs": path in known and known[path].default != value and path not in ("method", "task"),
        }
        for path, value in values.items()
    ]


def _values(recipe: Document) -> Document:
    """The settings of a recipe by their paths: all of them, where no code of the user's has some."""
    return flat(document_of(build(Recipe, recipe)) if _ships(recipe) else recipe)


def _ships(recipe: Document) -> bool:
    """Whether the defaults of a recipe's pieces can be told without code of the user's."""
    return not any(isinstance(value, str) and ":" in value for value in flat(_names(recipe)).values())


def _names(recipe: Document) -> Document:
    """The choices of a recipe, all other settings left at their defaults."""
    found: Document = {}
    for key, value in recipe.items():
        if isinstance(value, dict) and (inner := _names(value)):
            found[key] = inner
        elif key == "name":
            found[key] = value
    return found
