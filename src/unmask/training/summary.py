"""What a run has come to: its held-out results before and after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unmask.errors import UserError
from unmask.evaluation.statistics import paired_interval, solved_summary
from unmask.report.durable import write_durably


def summarise(run: Path, method: str, steps: int) -> dict[str, Any]:
    """Write summary.json of a run that has trained so many steps, from its before.json and after.json; its contents.

    Raises UserError where these are not of the same examples.
    """
    before, after = (json.loads((run / name).read_text()) for name in ("before.json", "after.json"))
    summary: dict[str, Any] = {"method": method, "steps": steps}
    for name in after:
        measured, _, metric = name.rpartition("/")
        if metric in ("solved", "preferred"):
            count = len(before.get(name, []))
            if count != len(after[name]):
                raise UserError(
                    f"the held-out data changed during the run: before.json has {count} results "
                    f"of {name}, after.json {len(after[name])}; the trained model lies in its checkpoints"
                )
            summary[measured] = _gain(before[name], after[name])
    write_durably(run / "summary.json", json.dumps(summary, indent=1))
    return summary


def _gain(before: list[float], after: list[float]) -> dict[str, Any]:
    gain, low, high = paired_interval(before, after)
    return {
        "before": solved_summary(before),
        "after": solved_summary(after),
        "gain": gain,
        "gain_low": low,
        "gain_high": high,
    }
