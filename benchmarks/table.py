"""What was measured, as a table: on the terminal, and as Markdown."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from core import Comparison, Timed, Verdict
from rollouts import MEMORY_ROWS

_LEGEND = (
    "In brackets: the baseline's seconds and MB, and the range of the rounds' ratios. Extra MB: of rollouts, at "
    f"{MEMORY_ROWS} rows, the peak of a fresh process above what it held before; of updates, what logits take at once."
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison, in words; `missed` says which bars were, if any."""

    case: str
    variant: str
    baseline: str
    seconds: str
    ratio: str
    equal: str
    memory: str
    bar: str
    met: str
    missed: tuple[str, ...]

    @property
    def cells(self) -> tuple[str, ...]:
        """The columns of the table."""
        return tuple(getattr(self, name) for name in _COLUMNS)


_COLUMNS = {
    field.name: {"seconds": "CPU s", "ratio": "times faster", "memory": "extra MB", "met": "met?"}.get(
        field.name, field.name
    )
    for field in fields(Row)
    if field.name != "missed"
}


def judge(case: str, comparison: Comparison, timed: Timed, verdict: Verdict | None, memory: dict[str, float]) -> Row:
    """A row, and whether it reaches its bars."""
    variant, baseline = comparison.variant, comparison.baseline
    ratios = timed.ratios(variant, baseline)
    bars, missed = [], []
    if comparison.at_least is not None:
        bars.append(f">= {comparison.at_least:g}x")
        if median(ratios) < comparison.at_least:
            missed.append(f"{median(ratios):.2f}x is below {comparison.at_least:g}x")
    if comparison.equal is not None and comparison.counts:
        bars.append("equal")
        if verdict is not None and not verdict.holds:
            missed.append(f"not equal: {verdict.text}")
    limit = comparison.memory_limit
    if comparison.memory_share is not None:
        limit = comparison.memory_share * memory[baseline]
    if limit is not None:
        bars.append(f"<= {limit:.0f} MB")
        if memory[variant] > limit:
            missed.append(f"{memory[variant]:.0f} MB are above {limit:.0f} MB")
    return Row(
        case=case,
        variant=variant,
        baseline=baseline,
        seconds=f"{timed.typical(variant):.2f} ({timed.typical(baseline):.2f})",
        ratio=f"{median(ratios):.2f} [{min(ratios):.2f}..{max(ratios):.2f}]",
        equal="" if verdict is None else verdict.text,
        memory=f"{memory[variant]:.0f} ({memory[baseline]:.0f})" if memory else "",
        bar=", ".join(bars),
        met="" if not bars or not comparison.counts else "no" if missed else "yes",
        missed=tuple(missed) if comparison.counts else (),
    )


def show(rows: list[Row], console: Console) -> None:
    """The table, and what was missed."""
    table = Table(caption=_LEGEND)
    for title in _COLUMNS.values():
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*row.cells, style="red" if row.missed else None)
    console.print(table)
    for row in rows:
        for reason in row.missed:
            console.print(f"missed: {row.case}: {row.variant} against {row.baseline}: {reason}", style="red")


def write_markdown(rows: list[Row], path: Path, rounds: int) -> None:
    """The same, with where and of what it was measured."""
    titles = list(_COLUMNS.values())
    lines = [" | ".join(titles), " | ".join("---" for _ in titles)]
    lines += [" | ".join(row.cells) for row in rows]
    table = "\n".join(f"| {line} |" for line in lines)
    path.write_text(f"{_setting(rounds)}\n\n{table}\n")


def _setting(rounds: int) -> str:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    ).stdout.strip()
    return (
        f"One thread, medians of {rounds} rounds; commit {commit or 'unknown'}, PyTorch {torch.__version__}, "
        f"{platform.machine()} ({torch.backends.cpu.get_cpu_capability()}). {_LEGEND}"
    )
