"""The console of tables and pages: as wide as the terminal, and as its content where there is none."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_UNLIMITED = 10_000  # columns of a pipe or a file: nothing is cut or folded there


def terminal_console(**options: Any) -> Console:
    """A console (see rich) that cuts no words where its output goes to a file or a pipe."""
    from rich.console import Console

    console = Console(**options)
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(**options, width=_UNLIMITED)
