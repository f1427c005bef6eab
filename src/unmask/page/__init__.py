"""The page of a run: one HTML file that shows what training did, or compares runs; and a server of it meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unmask.page.html import document, embedded
from unmask.page.runs import blobs_of, page_of
from unmask.report.durable import write_durably

__all__ = ["write_report"]


def write_report(runs: Sequence[Path], output: Path) -> Path:
    """Write the page of a run, or of several compared, as one HTML file that needs no network; its path.

    Raises UserError where there is no run, a file of it is damaged, or the extra `report` is not installed.
    """
    page = page_of(runs)
    blobs = blobs_of(runs[0]) if len(runs) == 1 else {}
    write_durably(output, document(page, embedded(blobs)), shared=True)
    return output
