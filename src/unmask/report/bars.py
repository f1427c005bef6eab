"""The bars of progress in a terminal, and a view below them. Imports rich, so that it is imported late."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


class Bars(Progress):
    """A bar for each phase that goes on, with its time, and a `view` below; gone when they are over."""

    def __init__(self, console: Console) -> None:
        self.view: RenderableType | None = None
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}", markup=False),
            TimeElapsedColumn(),
        )
        # Where the output goes elsewhere, what is printed there is not for this console.
        redirect = sys.stdout.isatty()
        super().__init__(*columns, console=console, expand=True, transient=True, redirect_stdout=redirect)

    def get_renderables(self) -> Iterable[RenderableType]:
        """As rich asks: what is drawn at each refresh."""
        yield from super().get_renderables()
        if self.view is not None:
            yield self.view
