"""What a notebook shows inline."""

from __future__ import annotations

from pathlib import Path


def in_notebook() -> bool:
    """Whether this process is the kernel of a Jupyter notebook."""
    from rich.console import Console

    return Console().is_jupyter


def show_picture(path: Path) -> bool:
    """Show a picture, such as a run's curve.png, below the cell that runs; False where there is no notebook."""
    if not in_notebook():
        return False
    from IPython.core.display_functions import display
    from IPython.display import Image

    display(Image(filename=str(path)))
    return True
