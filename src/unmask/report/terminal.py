"""Consoles for what commands print: they wrap no words where there is no terminal, and leave broken pipes to `main`."""

from __future__ import annotations

import os
from typing import Any

from rich.console import Console

UNLIMITED = 10_000  # columns of a pipe or a file: nothing is cut or folded there


class OutputConsole(Console):
    """A console (see rich) that raises BrokenPipeError where nobody reads on; rich's own ends the process."""

    def on_broken_pipe(self) -> None:
        """Called by rich while it handles that error."""
        raise


def terminal_console(**options: Any) -> Console:
    """A console that cuts no words where its output goes to a file or a pipe."""
    console = OutputConsole(**options)
    return console if console.is_terminal or "COLUMNS" in os.environ else OutputConsole(**options, width=UNLIMITED)
