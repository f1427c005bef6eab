"""What was measured of an exported model, with intervals: from the files of its run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.export.source import ExportSource
from unmask.report.metrics import read_metrics

_RATES = {"solved": "solved", "preferred": "ranked as given"}


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A rate, with its 95 % interval where it is known; a gain has one over the same examples before and after."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One figure of held-out examples: how they were sampled, what was counted, before and after training.

    `before`, `gain`, `examples`, their number: None where not known, as of a checkpoint in the midst of a run.
    """

    name: str
    counted: str
    after: Rate
    before: Rate | None = None
    gain: Rate | None = None
    examples: int | None = None


def measured_of(source: ExportSource) -> list[Measured]:
    """The figures of the checkpoint: those of the run's summary if it is its last, else those measured at its step."""
    if source.run is None or source.trained is None or source.step is None:
        return []
    summary = source.run / "summary.json"
    if summary.is_file():
        figures = json.loads(summary.read_text())
        if figures["steps"] == source.step:
            return list(_of_summary(figures, _counts(source.run / "after.json")))
    return list(_of_metrics(source.run / "metrics.jsonl", source.step))


def _counts(path: Path) -> dict[str, int]:
    """By the names of the summary, how many examples each figure is of; empty where the file is not there."""
    values = json.loads(path.read_text()) if path.is_file() else {}
    return {name.rpartition("/")[0]: len(each) for name, each in values.items()}


def _of_summary(summary: Mapping[str, Any], counts: Mapping[str, int]) -> Iterator[Measured]:
    for name, figures in summary.items():
        if isinstance(figures, dict):
            yield Measured(
                name=name,
                counted=_RATES["preferred" if name == "pairs" else "solved"],
                after=_rate(figures["after"], "solved"),
                before=_rate(figures["before"], "solved"),
                gain=_rate(figures, "gain"),
                examples=counts.get(name),
            )


def _of_metrics(path: Path, step: int) -> Iterator[Measured]:
    row = {name: value for record in read_metrics(path) if record.get("step") == step for name, value in record.items()}
    for key in row:
        _, _, name = key.partition("eval/")
        name, _, counted = name.rpartition("/")
        if name and counted in _RATES:
            yield Measured(name=name, counted=_RATES[counted], after=_rate(row, key))


def _rate(figures: Mapping[str, float], key: str) -> Rate:
    return Rate(value=figures[key], low=figures.get(f"{key}_low"), high=figures.get(f"{key}_high"))
