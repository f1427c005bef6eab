"""A training run as it lies in its directory, whoever started it."""

from __future__ import annotations

import json
import tomllib
from functools import cached_property
from pathlib import Path
from typing import Any

from unmask.denoisers.directories import checkpoints
from unmask.errors import UserError
from unmask.report.curve import draw_curve
from unmask.report.metrics import read_metrics


class Run:
    """The directory of a run: metrics, checkpoints, summary, curve. In a notebook it shows its curve.

    Raises UserError where no run lies.

        run = unmask.Run("runs/spg-sudoku-001")
        run.summary["greedy_16"]["gain"], run.checkpoint
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        if not (self.directory / "recipe.toml").is_file():
            raise UserError(f"{str(directory)!r} has no recipe.toml: give the directory of a run")

    def __repr__(self) -> str:
        return f"Run({str(self.directory)!r})"

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """Its settings, as recipe.toml has them."""
        return tomllib.loads((self.directory / "recipe.toml").read_text(encoding="utf-8"))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One row a training step, evaluation or warning, in their order; names as in TRL where TRL has one."""
        path = self.directory / "metrics.jsonl"
        return read_metrics(path) if path.is_file() else []

    @property
    def summary(self) -> dict[str, Any]:
        """Solve rates before and after with 95 % intervals; empty until the run is done."""
        path = self.directory / "summary.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        return found

    @property
    def checkpoints(self) -> list[Path]:
        """Directories of its checkpoints, the oldest first: models in the layout of transformers."""
        return checkpoints(self.directory / "checkpoints")

    @property
    def checkpoint(self) -> Path:
        """The newest of them. Raises UserError where there is none."""
        if not self.checkpoints:
            raise UserError(f"{self.directory} has no checkpoint yet: train further, or with a smaller save_steps")
        return self.checkpoints[-1]

    def curve(self, output: str | Path | None = None) -> Path:
        """Draw reward and solve rates over the steps as a PNG: its path, curve.png in the run unless `output` says."""
        path = self.directory / "curve.png" if output is None else Path(output)
        draw_curve(self.metrics, path, self.directory.name, shared=True)
        return path

    def report(self, output: str | Path | None = None) -> Path:
        """Write the page of the run, one HTML file that needs no network: its path, report.html in the run unless said.

        Raises UserError where the extra `report` is not installed.
        """
        from unmask.page import write_report

        return write_report([self.directory], self.directory / "report.html" if output is None else Path(output))

    def _repr_png_(self) -> bytes:
        return self.curve().read_bytes()
