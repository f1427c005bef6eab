"""The table of faults: what was tried, how often it was survived, and what was lost."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Row:
    """One kind of fault."""

    fault: str
    tried: int = 0
    survived: int = 0
    lost: list[str] = field(default_factory=list)

    def add(self, tried: int, lost: list[str]) -> None:
        """Add so many faults of a run, and what was lost in it."""
        self.tried += tried
        self.survived += 0 if lost else tried
        self.lost += lost


def shown(rows: list[Row]) -> str:
    """The table as text, with a line for everything that was lost below it."""
    width = max(len(row.fault) for row in rows)
    lines = [f"{'fault':{width}}  tried  survived  lost"]
    lines += [f"{row.fault:{width}}  {row.tried:5}  {row.survived:8}  {len(row.lost) or 'nothing'}" for row in rows]
    return "\n".join([*lines, *(f"LOST ({row.fault}): {each}" for row in rows for each in row.lost)])
