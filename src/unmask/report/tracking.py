"""Experiment trackers that are told of a run: wandb, tensorboard, trackio, mlflow, through those of accelerate.

What is ours is which of their calls takes what. A tracker that fails is told of once and left out; metrics.jsonl has
everything.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from unmask.denoisers.intact import read_json
from unmask.report.durable import write_durably
from unmask.report.progress import message

IDENTITIES = "trackers.json"  # in the run's directory: by which name a tracker goes on with its run
PICTURE, PAGE = "curve.png", "report.html"
_PROJECT = "unmask"
_COLUMNS = ["step", "prompt", "completion", "reward"]


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """How one tracker of accelerate is started, and which of its calls takes what.

    `options`: of its class, from the run's directory, the identity that it had there, and the first step to come.
    `identity`: of a tracker that has started, by which it goes on.
    `table`, `picture`, `file`: a table of completions, the curve, another file; None where it takes none.
    """

    options: Callable[[Path, str | None, int], dict[str, Any]]
    identity: Callable[[Any], str] = lambda tracker: str(tracker.run_name)
    table: Callable[[Any, list[list[Any]], int], object] | None = None
    picture: Callable[[Any, Path, int], object] | None = None
    file: Callable[[Any, Path], object] | None = None


def _project(name: str) -> str:
    return os.environ.get(f"{name.upper()}_PROJECT", _PROJECT)


def _pixels(path: Path) -> Any:
    from matplotlib.image import imread

    return imread(path)[..., :3]  # without the transparency, which not all take


def _trackio_table(tracker: Any, rows: list[list[Any]], step: int) -> None:
    from trackio import Table

    tracker.log({"completions": Table(columns=_COLUMNS, data=rows)}, step=step)


def _trackio_picture(tracker: Any, path: Path, step: int) -> None:
    from trackio import Image

    tracker.log({"curve": Image(path)}, step=step)


_KINDS = {
    "wandb": _Kind(
        # Its copy of what is printed would redraw progress line by line.
        options=lambda directory, identity, first_step: {
            "run_name": _project("wandb"),
            "name": directory.name,
            "dir": str(directory),
            "id": identity,
            "resume": "allow",
            "settings": {"console": "off"},
        },
        identity=lambda tracker: str(tracker.tracker.id),
        table=lambda tracker, rows, step: tracker.log_table("completions", _COLUMNS, rows, step=step),
        picture=lambda tracker, path, step: tracker.log_images({"curve": [_pixels(path)]}, step=step),
        file=lambda tracker, path: tracker.tracker.log_artifact(str(path), name=path.stem, type="report"),
    ),
    "tensorboard": _Kind(
        options=lambda directory, identity, first_step: {
            "run_name": "tensorboard",
            "logging_dir": str(directory),
            "purge_step": first_step + 1 if first_step else None,
        },
        table=lambda tracker, rows, step: tracker.log({"completions": _markdown(rows)}, step=step),
        picture=lambda tracker, path, step: tracker.log_images(
            {"curve": _pixels(path)[None]}, step=step, dataformats="NHWC"
        ),
    ),
    "trackio": _Kind(
        options=lambda directory, identity, first_step: {
            "run_name": _project("trackio"),
            "name": directory.name,
            "resume": "allow",
        },
        table=_trackio_table,
        picture=_trackio_picture,
    ),
    "mlflow": _Kind(
        options=lambda directory, identity, first_step: {
            "experiment_name": _project("mlflow"),
            "run_name": directory.name,
            "run_id": identity,
        },
        identity=lambda tracker: str(tracker.tracker.info.run_id),
        picture=lambda tracker, path, step: tracker.log_artifact(str(path)),
        file=lambda tracker, path: tracker.log_artifact(str(path)),
    ),
}


class Trackers:
    """Trackers of a run, started within a `with`: told its settings, metrics, completions, and at last its files.

    `names`: those wanted, none on ranks that do not write. `settings`: by their paths. `first_step`: steps that the run
    has when it goes on. `on_cpu`: whether it computes there, as accelerate asks.
    """

    def __init__(
        self, names: Iterable[str], directory: Path, settings: Mapping[str, Any], first_step: int, *, on_cpu: bool
    ) -> None:
        self._names, self._directory, self._on_cpu = tuple(names), directory, on_cpu
        self._settings = {path: value for path, value in settings.items() if value is not None}
        self._step = self._first_step = first_step
        self._trackers: dict[str, Any] = {}
        self._identities: dict[str, str] = {}

    def __enter__(self) -> Self:
        path = self._directory / IDENTITIES
        known = read_json(path) if self._names and path.is_file() else {}
        for name in self._names:
            self._try(name, lambda name=name: self._start(name, known.get(name)))
        if self._identities:
            write_durably(path, json.dumps(known | self._identities, indent=1))
        return self

    def _start(self, name: str, identity: str | None) -> None:
        tracker = _tracker_class(name, on_cpu=self._on_cpu)(
            **_KINDS[name].options(self._directory, identity, self._first_step)
        )
        tracker.main_process_only = False  # this is the one rank that tells
        tracker.start()
        self._trackers[name] = tracker
        self._identities[name] = _KINDS[name].identity(tracker)
        if identity is None:
            tracker.store_init_configuration(self._settings)

    def scalars(self, row: Mapping[str, Any]) -> None:
        """Tell the numbers of a row of metrics.jsonl, under the names that TRL's runs have there."""
        self._step = row["step"]
        values = {_name(key): value for key, value in row.items() if key != "step" and _is_number(value)}
        for name, tracker in list(self._trackers.items()) if values else ():
            self._try(name, lambda tracker=tracker: tracker.log(values, step=self._step))

    def completions(self, row: Mapping[str, Any]) -> None:
        """Tell the completions of a row of completions.jsonl as a table."""
        step, prompt = row["step"], row.get("prompt", "")
        rows = [[step, prompt, each["text"], each["reward"]] for each in row.get("completions", ())]
        for name, tracker in list(self._trackers.items()) if rows else ():
            if (table := _KINDS[name].table) is not None:
                self._try(name, lambda table=table, tracker=tracker: table(tracker, rows, step))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self._trackers):
            self._try(name, lambda name=name: self._give_files(name))
        for name, tracker in list(self._trackers.items()):
            self._try(name, tracker.finish)

    def _give_files(self, name: str) -> None:
        kind, tracker = _KINDS[name], self._trackers[name]
        curve, page = self._directory / PICTURE, self._directory / PAGE
        if kind.picture is not None and curve.is_file():
            kind.picture(tracker, curve, self._step)
        files = [page] if kind.table is not None else [page, self._directory / "completions.jsonl"]
        for path in files if kind.file is not None else ():
            if path.is_file():
                kind.file(tracker, path)

    def _try(self, name: str, call: Callable[[], object]) -> None:
        """Do it; where the tracker fails, say so and leave it out from here on."""
        try:
            call()
        except Exception as error:  # noqa: BLE001 - whatever it is, the run is worth more
            self._trackers.pop(name, None)
            detail = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            message(f"warning: tracker {name} failed and is left out from here on ({detail}); metrics.jsonl has all")


def _tracker_class(name: str, *, on_cpu: bool) -> Any:
    """accelerate's tracker of a name, which logs by accelerate's own state of processes."""
    import torch
    from accelerate.state import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    threads = torch.get_num_threads()
    PartialState(cpu=on_cpu)
    torch.set_num_threads(threads)  # on several ranks it takes a number of its own
    return LOGGER_TYPE_TO_CLASS[name]


def _name(key: str) -> str:
    """A metric's name as transformers' Trainer, and so TRL, gives it to trackers: train/reward, eval/..."""
    return key if key.startswith("eval/") else f"train/{key}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _markdown(rows: list[list[Any]]) -> str:
    """A table in Markdown; texts as code, in which nothing is markup."""
    lines = [_COLUMNS, ["---"] * len(_COLUMNS), *([_cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if not isinstance(value, str):
        return f"{value:g}" if isinstance(value, float) else str(value)
    shown = " ".join(value.replace("`", "'").replace("|", "¦").split())
    return f"`{shown}`" if shown else ""
